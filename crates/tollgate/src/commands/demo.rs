//! `tollgate demo`: a few dozen prompts through HTTP, the queue, a worker and the configured provider.

use std::collections::{HashMap, HashSet};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::Instant;
use tollgate_model::job::{Job, JobStatus};
use tollgate_model::submission::Submission;
use tollgate_outbound::TollgateClient;
use uuid::Uuid;

use crate::commands::dev::warn_if_simulated;
use crate::config::Config;
use crate::lifecycle::shutdown_on_signal;
use crate::local::Local;
use crate::node::secret;
use crate::output::{Failure, print, print_line, program};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
It starts a private PostgreSQL, the API and a worker, submits a few dozen prompts over HTTP, shows how
they are worked off, prints the answers and ends: with exit code 0 if every job succeeded.")]
pub(crate) struct Args {
    /// How many jobs; the prompts repeat from the 37th on.
    #[arg(long, value_name = "N", default_value_t = 36, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    jobs: u16,
    /// The most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 120)]
    max_tokens: i64,
    /// Stay up afterwards, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Keep the data here; nothing is kept if not given.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Summary {
    event: &'static str,
    jobs: usize,
    succeeded: usize,
    failed: usize,
    seconds: f64,
    jobs_per_second: f64,
    /// From being accepted to the start of the (last) attempt.
    wait_ms_p50: i64,
    /// From being accepted to the result.
    total_ms_p50: i64,
    total_ms_p95: i64,
    tokens: i64,
    simulated: bool,
}

pub(crate) async fn run(args: Args, config: Config, json: bool) -> Result<(), Failure> {
    let shutdown = shutdown_on_signal()?;
    eprintln!("starting PostgreSQL, API and worker …");
    let started = Box::pin(Local::start(config, args.data_dir.as_deref(), None, &shutdown)).await?;
    let Some(local) = started else { return Err(Failure::new("interrupted")) };
    warn_if_simulated(&local);
    let result = tokio::select! {
        result = show(&args, &local, json) => result,
        failure = local.failure() => Err(failure),
        () = shutdown.cancelled() => Err(Failure::new("interrupted")),
    };
    if args.keep && result.is_ok() {
        let access = &local.access;
        print_line(&format!("staying up at {} with key {} until Ctrl-C", access.url, access.api_key))?;
        shutdown.cancelled().await;
    }
    local.stop().await?;
    result
}

async fn show(args: &Args, local: &Local, json: bool) -> Result<(), Failure> {
    let client = TollgateClient::new(&local.access.url, secret(local.access.api_key.clone()))?;
    let began = Instant::now();
    let prompts = submit(&client, args).await?;
    let jobs = follow(&client, prompts.keys().copied().collect(), began).await?;
    let seconds = began.elapsed().as_secs_f64();
    if !json {
        for job in &jobs {
            print_line(&answer(job, prompts.get(&job.id).copied().unwrap_or_default()))?;
        }
    }
    let summary = summarise(&jobs, seconds, local.simulated);
    print(json, &summary, || describe(&summary))?;
    match jobs.iter().find(|job| job.status != JobStatus::Succeeded) {
        None if json => Ok(()),
        None => print_line(&next_steps(local.simulated)),
        Some(job) => {
            let error = job
                .error
                .as_ref()
                .map_or(String::new(), |error| format!(": {}: {}", error.code, error.message));
            Err(Failure::new(format!(
                "{} of {} jobs failed; job {}{error}",
                summary.failed, summary.jobs, job.id
            )))
        }
    }
}

/// Each prompt is a request of its own, as a client's would be.
async fn submit(client: &TollgateClient, args: &Args) -> Result<HashMap<Uuid, &'static str>, Failure> {
    let mut prompts = HashMap::new();
    for prompt in include_str!("prompts.txt").lines().cycle().take(args.jobs.into()) {
        let submission = Submission {
            prompt: Some(prompt.to_owned()),
            max_tokens: Some(args.max_tokens),
            ..Submission::default()
        };
        prompts.insert(client.submit(&submission).await?, prompt);
    }
    eprintln!("{} jobs accepted", prompts.len());
    Ok(prompts)
}

/// Shows progress until every job has ended. Returns them, oldest first.
async fn follow(
    client: &TollgateClient,
    mut open: HashSet<Uuid>,
    began: Instant,
) -> Result<Vec<Job>, Failure> {
    let total = open.len();
    let bar = ProgressBar::new(total as u64);
    if let Ok(style) = ProgressStyle::with_template("  [{bar:40}] {pos}/{len} done  {msg}") {
        bar.set_style(style);
    }
    let terminal = std::io::stderr().is_terminal();
    let mut said = Instant::now();
    let mut ended = Vec::with_capacity(total);
    while !open.is_empty() {
        let mut running = 0;
        let mut trouble = String::new();
        for job in newest(client, total).await? {
            if job.status == JobStatus::Running {
                running += 1;
            }
            if let (false, Some(error)) = (job.status.is_final(), &job.error) {
                trouble = format!("; retrying after {}: {}", error.code, error.message);
            }
            if job.status.is_final() && open.remove(&job.id) {
                ended.push(job);
            }
        }
        let rate = ended.len() as f64 / began.elapsed().as_secs_f64();
        let latency = percentile(ended.iter().map(total_ms).collect(), 0.5);
        let waiting = open.len().saturating_sub(running);
        let words = format!(
            "{running} running, {waiting} queued, {rate:.1} jobs/s, median latency {latency} ms{trouble}"
        );
        bar.set_position(ended.len() as u64);
        bar.set_message(words.clone());
        if !terminal && (said.elapsed() > Duration::from_secs(1) || open.is_empty()) {
            eprintln!("  {}/{total} done  {words}", ended.len());
            said = Instant::now();
        }
        if !open.is_empty() {
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }
    bar.finish();
    ended.sort_by_key(|job| job.id);
    Ok(ended)
}

/// The account's newest jobs.
async fn newest(client: &TollgateClient, count: usize) -> Result<Vec<Job>, Failure> {
    let mut jobs = Vec::new();
    let mut cursor = None;
    while jobs.len() < count {
        let page = client.jobs(None, 100, cursor.as_deref()).await?;
        jobs.extend(page.data);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    Ok(jobs)
}

fn answer(job: &Job, prompt: &str) -> String {
    let said = match (&job.output, &job.error) {
        (Some(output), _) => output.text.split_whitespace().collect::<Vec<_>>().join(" "),
        (None, Some(error)) => format!("{}: {}", error.code, error.message),
        (None, None) => job.status.to_string(),
    };
    let short: String = said.chars().take(300).collect();
    let dots = if short.len() < said.len() { " …" } else { "" };
    format!("\n> {prompt}\n  {short}{dots}")
}

fn total_ms(job: &Job) -> i64 {
    job.finished_at.map_or(0, |finished| (finished - job.created_at).num_milliseconds())
}

fn wait_ms(job: &Job) -> i64 {
    job.started_at.map_or(0, |started| (started - job.created_at).num_milliseconds())
}

fn percentile(mut values: Vec<i64>, at: f64) -> i64 {
    values.sort_unstable();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of a short list")]
    let index = ((values.len() as f64 * at) as usize).min(values.len().saturating_sub(1));
    values.get(index).copied().unwrap_or_default()
}

fn summarise(jobs: &[Job], seconds: f64, simulated: bool) -> Summary {
    let succeeded = jobs.iter().filter(|job| job.status == JobStatus::Succeeded).count();
    Summary {
        event: "done",
        jobs: jobs.len(),
        succeeded,
        failed: jobs.len() - succeeded,
        seconds: (seconds * 100.0).round() / 100.0,
        jobs_per_second: (jobs.len() as f64 / seconds * 100.0).round() / 100.0,
        wait_ms_p50: percentile(jobs.iter().map(wait_ms).collect(), 0.5),
        total_ms_p50: percentile(jobs.iter().map(total_ms).collect(), 0.5),
        total_ms_p95: percentile(jobs.iter().map(total_ms).collect(), 0.95),
        tokens: jobs
            .iter()
            .filter_map(|job| job.output.as_ref())
            .map(|output| output.usage.total_tokens)
            .sum(),
        simulated,
    }
}

fn describe(summary: &Summary) -> String {
    let Summary {
        jobs,
        succeeded,
        seconds,
        jobs_per_second,
        wait_ms_p50,
        total_ms_p50,
        total_ms_p95,
        tokens,
        ..
    } = summary;
    let provider = if summary.simulated { "the simulated provider" } else { "the configured provider" };
    format!(
        "\n{succeeded} of {jobs} jobs succeeded in {seconds} s through {provider}: {jobs_per_second} jobs/s, {tokens} tokens.\n\
         From accepted to result: median {total_ms_p50} ms, 95th percentile {total_ms_p95} ms, of which waiting for a \
         worker's slot: median {wait_ms_p50} ms."
    )
}

fn next_steps(simulated: bool) -> String {
    let tollgate = program();
    let real = if simulated {
        format!("\n  OPENAI_API_KEY=… {tollgate} demo\n      the same through a real model")
    } else {
        String::new()
    };
    format!(
        "\nNext:\n\
         \n  {tollgate} dev\n      a Tollgate that stays, with a key to post jobs with\
         \n  {tollgate} job submit --prompt 'Hello' --watch\n      beside it, in another terminal\
         \n  {tollgate} --help\n      every command; README.md and ARCHITECTURE.md say how it works{real}"
    )
}
