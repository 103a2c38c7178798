//! Prices: from what a provider counted to credits (SPEC C3). The adapters know nothing of them.
//!
//! A price belongs to a provider and a model, or to all models of a provider that have none of their own, and holds from a
//! date on. A job keeps a copy of the price it was accepted under, so that no later change can touch it.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::generation::{Endpoint, GenerationOutput, GenerationRequest};

/// Tokens that a price per token is for.
const PER: i128 = 1_000_000;

/// The most that one rate may be: far above any price, and no sum of a job's rates overflows.
pub const MAX_RATE: i64 = 1_000_000_000_000;

/// The size whose price holds for every size that has none.
pub const ANY_SIZE: &str = "any";

/// What one kind of answer costs, in credits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Credits per million tokens of the input.
    #[serde(default)]
    pub prompt: i64,
    /// The same for those that the provider had in its cache; as `prompt` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<i64>,
    /// Credits per million tokens generated.
    #[serde(default)]
    pub completion: i64,
    /// Credits per image, by its size; `any` for the sizes that are not named. Without it, images have no price.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<String, i64>,
}

/// What a provider's model costs, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Price {
    /// The adapter's name, such as `openai`.
    pub provider: String,
    /// The provider's name of the model; null: every model that has no price of its own.
    #[serde(default)]
    #[schema(required)]
    pub model: Option<String>,
    /// In force from here on; null: since ever.
    #[serde(default, deserialize_with = "date_or_time")]
    #[schema(required)]
    pub from: Option<DateTime<Utc>>,
    /// No longer in force from here on; null: until another one follows.
    #[serde(default, deserialize_with = "date_or_time")]
    #[schema(required)]
    pub until: Option<DateTime<Utc>>,
    /// The price itself.
    #[serde(flatten)]
    pub rates: Rates,
}

/// A price that cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("price of {provider} {model}: {problem}")]
pub struct BadPrice {
    provider: String,
    model: String,
    problem: String,
}

impl Price {
    /// Checks what no type can say.
    pub fn check(&self) -> Result<(), BadPrice> {
        let bad = |problem: &str| {
            let model = self.model.clone().unwrap_or_else(|| "any other model".into());
            Err(BadPrice { provider: self.provider.clone(), model, problem: problem.into() })
        };
        let rates = &self.rates;
        let each = [Some(rates.prompt), rates.cached, Some(rates.completion)];
        if each
            .into_iter()
            .flatten()
            .chain(rates.images.values().copied())
            .any(|rate| !(0..=MAX_RATE).contains(&rate))
        {
            return bad("a rate must be between 0 and 1,000,000,000,000 credits");
        }
        if self.provider.is_empty() || self.provider.len() > 100 {
            return bad("`provider` must have 1 to 100 characters");
        }
        if self.model.as_ref().is_some_and(|model| model.is_empty() || model.len() > 200) {
            return bad("`model` must have 1 to 200 characters; leave it out for every other model");
        }
        if self.from.zip(self.until).is_some_and(|(from, until)| from >= until) {
            return bad("`until` must be later than `from`");
        }
        Ok(())
    }

    fn holds_at(&self, now: DateTime<Utc>) -> bool {
        self.from.is_none_or(|from| from <= now) && self.until.is_none_or(|until| now < until)
    }
}

/// All prices, of now and of other times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PriceList(Vec<Price>);

impl PriceList {
    /// What holds where nothing is configured: about what a small model costs, if a credit is a tenth of a cent.
    pub fn built_in() -> Vec<Price> {
        let images = BTreeMap::from([(ANY_SIZE.to_owned(), 40)]);
        let rates = Rates { prompt: 250, cached: Some(125), completion: 1000, images };
        vec![Price { provider: "openai".into(), model: None, from: None, until: None, rates }]
    }

    /// A list of these; of two that are alike, the later one holds.
    pub fn new(prices: Vec<Price>) -> Self {
        Self(prices)
    }

    /// The price of a model in force at `now`: its own, or else its provider's for all others; of several, the one that came
    /// into force last.
    pub fn at(&self, now: DateTime<Utc>, provider: &str, model: &str) -> Option<&Rates> {
        let of = |wanted: Option<&str>| {
            let fits = |price: &&Price| {
                price.provider == provider && price.model.as_deref() == wanted && price.holds_at(now)
            };
            self.0.iter().filter(fits).max_by_key(|price| price.from).map(|price| &price.rates)
        };
        of(Some(model)).or_else(|| of(None))
    }
}

/// What is expected of a text job that does not say how much it may generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expectation {
    /// Tokens that it is expected to generate.
    pub completion_tokens: u32,
}

/// What a job was accepted under: kept with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// The price in force then.
    pub rates: Rates,
    /// What is held for it, in credits.
    pub estimate: i64,
}

impl Quote {
    /// Estimates a request; `None`: the price knows nothing of its kind or size.
    pub fn new(rates: &Rates, request: &GenerationRequest, expected: Expectation) -> Option<Self> {
        let estimate = match request.endpoint {
            Endpoint::Images => rates.image(request.size.as_deref())?,
            Endpoint::ChatCompletions | Endpoint::Responses => {
                let completion = request.max_tokens.unwrap_or(expected.completion_tokens);
                rates.tokens(prompt_tokens(request), 0, completion.into())
            }
        };
        Some(Self { rates: rates.clone(), estimate })
    }

    /// What an answer costs. Where the provider counted nothing, what was sent and received is measured as the estimate is.
    pub fn cost(&self, request: &GenerationRequest, output: &GenerationOutput) -> i64 {
        match request.endpoint {
            Endpoint::Images => self.rates.image(request.size.as_deref()).unwrap_or(self.estimate),
            Endpoint::ChatCompletions | Endpoint::Responses => {
                let usage = output.usage;
                if usage.prompt_tokens <= 0 && usage.completion_tokens <= 0 {
                    return self.rates.tokens(prompt_tokens(request), 0, tokens(&output.text));
                }
                self.rates.tokens(usage.prompt_tokens, output.cached_tokens, usage.completion_tokens)
            }
        }
    }
}

impl Rates {
    /// Rounded up, once, so that no job that costs anything costs nothing. Counts that make no sense count as 0.
    fn tokens(&self, prompt: i64, cached: i64, completion: i64) -> i64 {
        let prompt = prompt.max(0);
        let cached = cached.clamp(0, prompt);
        let of = |tokens: i64, rate: i64| i128::from(tokens) * i128::from(rate);
        let sum = of(prompt - cached, self.prompt)
            + of(cached, self.cached.unwrap_or(self.prompt))
            + of(completion.max(0), self.completion);
        i64::try_from((sum + PER - 1) / PER).unwrap_or(i64::MAX)
    }

    fn image(&self, size: Option<&str>) -> Option<i64> {
        size.and_then(|size| self.images.get(size)).or_else(|| self.images.get(ANY_SIZE)).copied()
    }
}

/// About four bytes are a token, and a message is a few by itself.
fn tokens(text: &str) -> i64 {
    i64::try_from(text.len().div_ceil(4)).unwrap_or(i64::MAX)
}

fn prompt_tokens(request: &GenerationRequest) -> i64 {
    request
        .messages
        .iter()
        .map(|message| tokens(&message.content).saturating_add(4))
        .fold(0, i64::saturating_add)
}

fn date_or_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| parse_time(&text)).transpose().map_err(serde::de::Error::custom)
}

/// Reads a time, or a date, which is its midnight, UTC.
pub fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    let date = || text.parse::<NaiveDate>().map(|date| date.and_time(NaiveTime::MIN).and_utc());
    text.parse::<DateTime<Utc>>().or_else(|_| date()).map_err(|_| {
        format!("`{text}` is not a date such as 2026-01-01, or a time such as 2026-01-01T12:00:00Z")
    })
}

#[cfg(test)]
mod tests;
