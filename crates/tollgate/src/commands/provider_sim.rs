//! `tollgate provider-sim`

use std::net::SocketAddr;

use serde_json::json;
use tollgate_sim::{Behaviour, Faults, RetryAfter, Sim};

use crate::commands::api::cannot_listen;
use crate::lifecycle::shutdown_on_signal;
use crate::output::{Failure, print};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
It speaks OpenAI's chat completions, responses and images, and says in each reply that it is simulated.
Faults are drawn by these probabilities, or scripted: POST /sim/script. GET /sim/stats counts;
PUT /sim/faults changes the behaviour; POST /sim/reset starts over.")]
pub(crate) struct Args {
    /// Where to listen. Port 0 takes any free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8790")]
    listen: SocketAddr,
    /// Median latency, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 400)]
    latency_ms: u32,
    /// 99th percentile of the latency; the median, and so a fixed latency, if not given.
    #[arg(long, value_name = "MS")]
    latency_p99_ms: Option<u32>,
    /// Makes a run repeatable.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A real rate limit: beyond it, 429 with Retry-After.
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u32>,
    /// Refuse any other key with 401.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// What a drawn `rate_limit` or `slow_down` says: `none`, seconds such as `2`, or `date:2`.
    #[arg(long, value_name = "WAIT", default_value = "1")]
    retry_after: RetryAfter,
    /// Probability (0 to 1) of 429.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    rate_limit: f64,
    /// Probability of 500, 502 or 503.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    server_error: f64,
    /// Probability of never answering.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    hang: f64,
    /// Probability of headers and half a body, then silence.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    silent_body: f64,
    /// Probability of a connection reset in mid-body.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    reset: f64,
    /// Probability of a body that is no JSON.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    malformed: f64,
    /// Probability of a body that ends early.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    truncated: f64,
    /// Probability of 429 `insufficient_quota`.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    insufficient_quota: f64,
    /// Probability of 400.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    bad_request: f64,
    /// Probability of 429 `slow_down`.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    slow_down: f64,
    /// Probability of 401.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    unauthorized: f64,
    /// Probability of an image's reply without image and URL.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    no_image_url: f64,
    /// Probability of an image's reply with an empty URL.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    empty_image_url: f64,
}

pub(crate) async fn run(args: Args, json: bool) -> Result<(), Failure> {
    let shutdown = shutdown_on_signal()?;
    let behaviour = Behaviour {
        latency_median_ms: args.latency_ms,
        latency_p99_ms: args.latency_p99_ms,
        seed: args.seed,
        requests_per_minute: args.requests_per_minute,
        api_key: args.api_key,
        retry_after: args.retry_after,
        faults: Faults {
            rate_limit: args.rate_limit,
            server_error: args.server_error,
            hang: args.hang,
            silent_body: args.silent_body,
            reset: args.reset,
            malformed: args.malformed,
            truncated: args.truncated,
            insufficient_quota: args.insufficient_quota,
            bad_request: args.bad_request,
            slow_down: args.slow_down,
            unauthorized: args.unauthorized,
            no_image_url: args.no_image_url,
            empty_image_url: args.empty_image_url,
        },
    };
    behaviour.validate().map_err(|error| Failure::misuse(error.to_string()))?;
    let sim = Sim::bind(args.listen, behaviour).await.map_err(|error| cannot_listen(args.listen, &error))?;
    let base_url = sim.base_url();
    print(json, &json!({ "event": "ready", "base_url": base_url }), || {
        format!("simulated provider: OPENAI_BASE_URL={base_url} OPENAI_API_KEY=simulated\nCtrl-C stops it")
    })?;
    sim.run(shutdown).await;
    Ok(())
}
