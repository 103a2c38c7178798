//! `tollgate price`

use clap::Subcommand;
use serde_json::json;
use tollgate_domain::prices;
use tollgate_model::audit::Actor;
use tollgate_model::pricing::{Price, Rates, parse_time};

use crate::commands::operator;
use crate::config::Config;
use crate::output::{Failure, print};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List every price: those of the configuration, then those that were set.
    List,
    /// Set a price. It holds for jobs that are accepted from then on, and cannot be taken back: set another.
    Set {
        /// The provider's adapter.
        #[arg(long, default_value = tollgate_outbound::OPENAI)]
        provider: String,
        /// The model; left out: every model that has no price of its own.
        #[arg(long)]
        model: Option<String>,
        /// Credits per million tokens of the input.
        #[arg(long, value_name = "CREDITS", default_value_t = 0, allow_negative_numbers = true)]
        prompt: i64,
        /// The same for those that the provider has in its cache; as --prompt if left out.
        #[arg(long, value_name = "CREDITS", allow_negative_numbers = true)]
        cached: Option<i64>,
        /// Credits per million tokens generated.
        #[arg(long, value_name = "CREDITS", default_value_t = 0, allow_negative_numbers = true)]
        completion: i64,
        /// Credits per image of a size, or of `any`; once for each.
        #[arg(long = "image", value_name = "SIZE=CREDITS", value_parser = image)]
        images: Vec<(String, i64)>,
        /// In force from this date (2026-01-01) or time on; left out: at once.
        #[arg(long, value_name = "DATE")]
        from: Option<String>,
        /// No longer in force from this date or time on.
        #[arg(long, value_name = "DATE")]
        until: Option<String>,
    },
}

fn image(text: &str) -> Result<(String, i64), String> {
    let parts =
        text.split_once('=').and_then(|(size, credits)| Some((size.to_owned(), credits.parse().ok()?)));
    parts.ok_or_else(|| format!("`{text}` is not SIZE=CREDITS, such as 1024x1024=40"))
}

fn row(price: &Price) -> String {
    let Price { provider, model, from, until, rates } = price;
    let day = |time: &Option<chrono::DateTime<chrono::Utc>>, none| {
        time.map_or_else(|| String::from(none), |time| time.format("%Y-%m-%dT%H:%MZ").to_string())
    };
    let images: Vec<_> = rates.images.iter().map(|(size, credits)| format!("{size}={credits}")).collect();
    format!(
        "{provider}  {:24}  {:>17} to {:17}  prompt {}  cached {}  completion {}  images {}",
        model.as_deref().unwrap_or("(any other)"),
        day(from, "ever"),
        day(until, "further notice"),
        rates.prompt,
        rates.cached.unwrap_or(rates.prompt),
        rates.completion,
        if images.is_empty() { "none".into() } else { images.join(",") },
    )
}

pub(crate) async fn run(command: Command, config: &Config, json: bool) -> Result<(), Failure> {
    let db = operator(config).await?;
    match command {
        Command::List => {
            let all: Vec<Price> = config.prices().into_iter().chain(prices::list(&db).await?).collect();
            print(json, &json!({ "data": all }), || {
                let rows: Vec<_> = all.iter().map(row).collect();
                format!(
                    "{}\n\nCredits per million tokens, and per image. Of two that are alike, the later one holds.",
                    rows.join("\n")
                )
            })
        }
        Command::Set { provider, model, prompt, cached, completion, images, from, until } => {
            let time = |text: Option<String>| text.map(|text| parse_time(&text)).transpose();
            let rates = Rates { prompt, cached, completion, images: images.into_iter().collect() };
            let (from, until) = (time(from).map_err(Failure::misuse)?, time(until).map_err(Failure::misuse)?);
            let price = prices::set(&db, Actor::Shell, Price { provider, model, from, until, rates }).await?;
            print(json, &price, || row(&price))
        }
    }
}
