//! `tollgate guard`

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde_json::json;
use tollgate_domain::guard::{self, Order};
use tollgate_model::audit::Actor;
use tollgate_model::guard::class::ModelClass;
use tollgate_model::guard::status::GuardStatus;

use crate::commands::operator;
use crate::config::Config;
use crate::output::{Failure, print};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show circuit, window, budget, pause, timeouts and calls in flight of each class of models.
    Status,
    /// Let no calls begin: for a time, after which probes decide, or until `close`.
    Open {
        /// The class: text or image.
        class: String,
        /// For so long, such as 10m. Without it: until further notice.
        #[arg(long = "for", value_name = "TIME", value_parser = time)]
        span: Option<Duration>,
    },
    /// Let calls begin, whatever was. A pause ends too.
    Close {
        /// The class: text or image.
        class: String,
    },
    /// Let no calls and no probes begin for so long at least. It never makes a pause shorter.
    Pause {
        /// The class: text or image.
        class: String,
        /// For so long, such as 30s.
        #[arg(long = "for", value_name = "TIME", value_parser = time)]
        span: Duration,
    },
    /// Switch the breaker's decisions on or off, for all processes at once. They are recorded all the same.
    Breaker {
        /// Whether they hold.
        #[arg(value_enum)]
        switch: Switch,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("not a time such as 30s or 10m: {error}"))
}

pub(crate) async fn run(command: Command, config: &Config, json: bool) -> Result<(), Failure> {
    let db = operator(config).await?;
    let (class, order) = match command {
        Command::Status => {
            let all = guard::status(&db, &config.guard, config.gen_breaker_enabled).await?;
            return print(json, &json!({ "data": all }), || {
                all.iter().map(shown).collect::<Vec<_>>().join("\n\n")
            });
        }
        Command::Breaker { switch } => {
            let enabled = switch == Switch::On;
            guard::switch_breaker(&db, Actor::Shell, enabled).await?;
            return print(json, &json!({ "breaker_enabled": enabled }), || {
                if enabled { "the breaker's decisions hold" } else { "the breaker's decisions do not hold" }
                    .into()
            });
        }
        Command::Open { class, span } => (class, Order::Open(span)),
        Command::Close { class } => (class, Order::Close),
        Command::Pause { class, span } => (class, Order::Pause(span)),
    };
    guard::order(&db, class_named(config, &class)?, Actor::Shell, order).await?;
    let all = guard::status(&db, &config.guard, config.gen_breaker_enabled).await?;
    let Some(status) = all.iter().find(|status| status.class == class) else { return Ok(()) };
    print(json, &json!(status), || shown(status))
}

fn class_named<'a>(config: &'a Config, name: &str) -> Result<&'a ModelClass, Failure> {
    config.guard.get(name).ok_or_else(|| {
        let known: Vec<_> = config.guard.classes().map(|class| class.name.as_str()).collect();
        Failure::misuse(format!("no such class of models: {name}; known are {}", known.join(", ")))
    })
}

fn shown(status: &GuardStatus) -> String {
    let GuardStatus { class, circuit, budget, timeouts, .. } = status;
    let off = if circuit.enabled { "" } else { " (switched off)" };
    let mut lines = vec![format!("{class}: {}{off} since {}", circuit.state, circuit.since.to_rfc3339())];
    if let Some(reason) = &circuit.reason {
        lines.push(format!("  the provider refuses the credential: {reason}"));
    }
    if let Some(until) = circuit.until {
        lines.push(format!("  until {}", until.to_rfc3339()));
    }
    lines.push(format!(
        "  last calls: {}, of them {} failures; failure rate {:.2}, timeouts in a row {}, trips {}",
        circuit.attempts, circuit.failures, circuit.failure_rate, circuit.timeouts_in_a_row, circuit.trips
    ));
    lines.push(match (budget.available, budget.capacity) {
        (Some(available), Some(capacity)) => {
            let each = Duration::from_millis(budget.refill_per_ms);
            format!("  budget: {available} of {capacity}, {} more every {each:?}", budget.refill)
        }
        _ => "  budget: no limit".into(),
    });
    if let Some(until) = status.paused_until {
        lines.push(format!("  paused until {}", until.to_rfc3339()));
    }
    lines.push(format!("  timeout: {} ms where too little is known", timeouts.initial_ms));
    for known in &timeouts.known {
        let size = known.size.as_ref().map_or_else(String::new, |size| format!(" {size}"));
        lines.push(format!(
            "    {} {}{size}: {} ms, by {} calls",
            known.provider, known.model, known.timeout_ms, known.calls
        ));
    }
    lines.push(format!("  in flight: {}", status.in_flight));
    let rate = status
        .gen_timeout_rate_15m
        .map_or_else(|| "no calls".into(), |rate| format!("{:.1} %", rate * 100.0));
    lines.push(format!(
        "  timeouts of the last 15 minutes: {rate}; open today for {} s",
        status.breaker_open_time_daily / 1000
    ));
    lines.join("\n")
}
