//! What money buys: credits for each unit of a currency, as Stripe counts it (cents, yen).

use std::collections::BTreeMap;

use serde::Deserialize;

/// Credits for each smallest unit of a currency; `usd = 10` makes ten credits of a cent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<String, u32>")]
pub struct CreditRates(BTreeMap<String, u32>);

impl TryFrom<BTreeMap<String, u32>> for CreditRates {
    type Error = String;

    fn try_from(rates: BTreeMap<String, u32>) -> Result<Self, String> {
        for (currency, credits) in &rates {
            if currency.len() != 3 || !currency.bytes().all(|byte| byte.is_ascii_lowercase()) {
                return Err(format!("`{currency}` is not a currency as Stripe writes it, such as usd"));
            }
            if *credits == 0 {
                return Err(format!("`{currency}` must buy at least 1 credit"));
            }
        }
        Ok(Self(rates))
    }
}

impl CreditRates {
    /// Credits for one unit; `None`: nothing is set for this currency.
    pub fn of(&self, currency: &str) -> Option<i64> {
        self.0.get(currency).copied().map(i64::from)
    }
}

/// What is configured for Stripe: `[stripe]` in `tollgate.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StripeSettings {
    /// What money buys.
    pub credits_per_unit: CreditRates,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<StripeSettings, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn rates_are_whole_credits_of_known_currencies() {
        let rates = read(r#"{"credits_per_unit": {"usd": 10, "jpy": 1000}}"#).unwrap().credits_per_unit;
        assert_eq!((rates.of("usd"), rates.of("jpy"), rates.of("eur")), (Some(10), Some(1000), None));
        assert_eq!(read("{}").unwrap(), StripeSettings::default());
        for (json, named) in [
            (r#"{"credits_per_unit": {"USD": 10}}"#, "USD"),
            (r#"{"credits_per_unit": {"dollars": 10}}"#, "dollars"),
            (r#"{"credits_per_unit": {"usd": 0}}"#, "at least 1"),
            (r#"{"credits_per_unit": {"usd": 0.5}}"#, "0.5"),
            (r#"{"credits_per_unit": {"usd": -1}}"#, "-1"),
            (r#"{"credits": {"usd": 1}}"#, "credits"),
        ] {
            assert!(read(json).is_err_and(|error| error.contains(named)), "{json}");
        }
    }
}
