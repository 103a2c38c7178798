//! What is set for Stripe.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use tollgate_model::queue::{QueueName, QueuePolicy};
use tollgate_model::retry::RetrySchedule;
use tollgate_model::stripe::signature::SigningSecrets;

use super::{Config, ConfigError};

impl Config {
    /// The secrets of Stripe's webhook; `None`: it is off.
    pub(crate) fn stripe_secrets(&self) -> Result<Option<SigningSecrets>, ConfigError> {
        let secrets =
            self.stripe_webhook_secret.as_ref().map(|text| SigningSecrets::parse(text.expose_secret()));
        secrets.transpose().map_err(|error| ConfigError(format!("`stripe_webhook_secret` {error}")))
    }

    /// As long as Stripe may send an event again, it must be known that it came.
    pub(super) fn check_stripe_events(&self) -> Result<(), ConfigError> {
        if self.stripe_event_retention.is_some_and(|keep| keep < Duration::from_hours(31 * 24)) {
            return Err(ConfigError(
                "`stripe_event_retention` must be at least 31d, or 0 for ever: Stripe may send an event again for 30 days"
                    .into(),
            ));
        }
        Ok(())
    }

    /// How old a signature may be.
    pub(crate) fn webhook_tolerance(&self) -> Duration {
        Duration::from_secs(self.webhook_tolerance_sec)
    }

    /// How `billing.credit_grant` treats its tasks.
    pub(crate) fn billing_policy(&self) -> QueuePolicy {
        QueuePolicy {
            name: QueueName::BillingCreditGrant,
            concurrency: self.q_billing_grant_concurrency,
            ttl: self.billing_ttl,
            retry: RetrySchedule::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let variable = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Config::read(Some(file), variable).map_err(|error| error.to_string())
    }

    #[test]
    fn rates_stand_in_the_file_or_the_environment() {
        let usd = |config: &Config| config.stripe.credits_per_unit.of("usd");
        let file = "[stripe.credits_per_unit]\nusd = 10";
        assert_eq!(usd(&read(file, &[]).unwrap()), Some(10));
        let environment = [("STRIPE", r#"{"credits_per_unit": {"usd": 20}}"#)];
        assert_eq!(usd(&read(file, &environment).unwrap()), Some(20));
        let config = read("", &[]).unwrap();
        assert_eq!((usd(&config), config.billing_policy().concurrency), (None, 2));
        assert_eq!(config.webhook_tolerance(), Duration::from_mins(5));
        assert!(config.stripe_secrets().unwrap().is_none());
        assert_eq!(config.stripe_event_retention, Some(Duration::from_hours(90 * 24)));
        let never = [("STRIPE_EVENT_RETENTION", "0")];
        assert_eq!(read("", &never).unwrap().stripe_event_retention, None);
    }

    #[test]
    fn mistakes_are_named_and_secrets_are_not() {
        for (file, environment, named) in [
            ("", &[("STRIPE_WEBHOOK_SECRET", "hidden")][..], "stripe_webhook_secret"),
            ("", &[("STRIPE_WEBHOOK_SECRET", "whsec_hidden123,hidden")], "two with a comma"),
            ("", &[("Q_BILLING_GRANT_CONCURRENCY", "0")], "q_billing_grant_concurrency"),
            ("", &[("STRIPE", "{")], "STRIPE"),
            ("", &[("STRIPE_API_BASE", "here")], "stripe_api_base"),
            ("", &[("STRIPE_EVENT_RETENTION", "30d")], "at least 31d"),
            ("[stripe.credits_per_unit]\nUSD = 10", &[], "USD"),
        ] {
            let error = read(file, environment).unwrap_err();
            assert!(error.contains(named), "{environment:?}: {error}");
            assert!(!error.contains("hidden"), "{error}");
        }
    }
}
