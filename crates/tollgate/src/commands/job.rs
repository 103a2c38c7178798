//! `tollgate job`

use std::io::Read as _;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Map, Value, json};
use tollgate_model::job::{Job, JobEvent, JobStatus};
use tollgate_outbound::TollgateClient;
use uuid::Uuid;

use crate::commands::client;
use crate::config::Config;
use crate::output::{Failure, print};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Submit a job.
    Submit(Box<Submit>),
    /// List jobs, newest first.
    List {
        /// Only those in this status: queued, running, succeeded, failed, cancelled.
        #[arg(long, value_name = "STATUS", value_parser = status)]
        status: Option<JobStatus>,
        /// How many, 1 to 100.
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
        limit: u32,
        /// Where to go on: `next_cursor` of the page before.
        #[arg(long)]
        cursor: Option<String>,
    },
    /// Show a job.
    Show {
        /// The job's id.
        id: Uuid,
    },
    /// Follow a job until it ends.
    Watch {
        /// The job's id.
        id: Uuid,
    },
    /// Call a job off.
    Cancel {
        /// The job's id.
        id: Uuid,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Submit {
    /// What to ask.
    #[arg(long, value_name = "TEXT", required_unless_present = "file")]
    prompt: Option<String>,
    /// A whole submission as JSON, from a file or `-`; the options win over it.
    #[arg(long, value_name = "PATH")]
    file: Option<String>,
    /// The job type.
    #[arg(long = "type", value_name = "TYPE")]
    job_type: Option<String>,
    /// The provider's name of the model.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Sampling temperature, 0 to 2.
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// The most tokens to generate.
    #[arg(long, value_name = "N")]
    max_tokens: Option<i64>,
    /// Size of an image: WIDTHxHEIGHT, or auto.
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// For a repeatable answer; images of one prompt, seed, model and size are one image.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<i64>,
    /// 1 (first) to 10 (last).
    #[arg(long, value_name = "N")]
    priority: Option<i64>,
    /// Attempts it may take.
    #[arg(long, value_name = "N")]
    max_attempts: Option<i64>,
    /// Not before this, such as 2030-01-01T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    scheduled_at: Option<String>,
    /// Total deadline of one call to the provider, in milliseconds.
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<i64>,
    /// Follow it until it ends.
    #[arg(long)]
    watch: bool,
}

fn status(word: &str) -> Result<JobStatus, String> {
    let known = || JobStatus::ALL.map(JobStatus::as_str).join(", ");
    JobStatus::parse(word).ok_or_else(|| format!("no such status; known are {}", known()))
}

impl Submit {
    fn body(self) -> Result<Value, Failure> {
        let mut body = match &self.file {
            Some(path) => match serde_json::from_str(&read(path)?) {
                Ok(Value::Object(body)) => body,
                Ok(_) => return Err(Failure::misuse(format!("{path} must hold one JSON object"))),
                Err(error) => return Err(Failure::misuse(format!("{path} is not JSON: {error}"))),
            },
            None => Map::new(),
        };
        for (name, value) in [
            ("prompt", json!(self.prompt)),
            ("type", json!(self.job_type)),
            ("model", json!(self.model)),
            ("temperature", json!(self.temperature)),
            ("max_tokens", json!(self.max_tokens)),
            ("size", json!(self.size)),
            ("seed", json!(self.seed)),
            ("priority", json!(self.priority)),
            ("max_attempts", json!(self.max_attempts)),
            ("scheduled_at", json!(self.scheduled_at)),
            ("timeout_ms", json!(self.timeout_ms)),
        ] {
            if !value.is_null() {
                body.insert(name.into(), value);
            }
        }
        Ok(Value::Object(body))
    }
}

fn read(path: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let result = if path == "-" {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text))
    };
    result.map(|_| text).map_err(|error| Failure::misuse(format!("cannot read {path}: {error}")))
}

pub(crate) async fn run(command: Command, config: &Config, json: bool) -> Result<(), Failure> {
    let client = client(config)?;
    match command {
        Command::Submit(submit) => {
            let follow = submit.watch;
            let id = client.submit_json(&submit.body()?).await?;
            print(json, &json!({ "job_id": id }), || id.to_string())?;
            if follow { watch(&client, id, json).await } else { Ok(()) }
        }
        Command::List { status, limit, cursor } => {
            let page = client.jobs(status, limit, cursor.as_deref()).await?;
            print(json, &json!({ "data": page.data, "next_cursor": page.next_cursor }), || {
                let mut lines: Vec<_> = page.data.iter().map(line).collect();
                lines.extend(page.next_cursor.iter().map(|cursor| format!("more with --cursor {cursor}")));
                if lines.is_empty() { "no jobs".into() } else { lines.join("\n") }
            })
        }
        Command::Show { id } => show(&client, &client.job(id).await?, json),
        Command::Watch { id } => watch(&client, id, json).await,
        Command::Cancel { id } => show(&client, &client.cancel(id).await?, json),
    }
}

fn line(job: &Job) -> String {
    let time = job.created_at.format("%Y-%m-%d %H:%M:%S");
    format!(
        "{}  {:<9}  {time}  {} of {}  {}",
        job.id, job.status, job.attempts, job.max_attempts, job.job_type
    )
}

fn show(client: &TollgateClient, job: &Job, json: bool) -> Result<(), Failure> {
    print(json, job, || {
        let mut text = line(job);
        if let Some(error) = &job.error {
            text += &format!("\n{}: {}", error.code, error.message);
        }
        if let Some(output) = &job.output {
            text += &format!(
                "\n{} ({}), {} ms, {} tokens\n\n{}",
                output.model, output.provider, output.latency_ms, output.usage.total_tokens, output.text
            );
            for image in &output.images {
                let (url, media_type, bytes) = (client.whole(&image.url), image.media_type, image.bytes);
                text += &format!("\n{url} ({media_type}, {bytes} bytes)");
            }
        }
        text
    })
}

/// Prints events as they come, then the job. Fails if the job did.
async fn watch(client: &TollgateClient, id: Uuid, json: bool) -> Result<(), Failure> {
    let mut seen = 0;
    loop {
        // The status before the events: those of a job that has ended are all there.
        let job = client.job(id).await?;
        let mut cursor = None;
        loop {
            let page = client.events(id, cursor.as_deref()).await?;
            for event in page.data.iter().filter(|event| event.seq > seen) {
                print(json, event, || describe(event))?;
            }
            seen = page.data.last().map_or(seen, |event| event.seq.max(seen));
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        if job.status.is_final() {
            show(client, &job, json)?;
            return match job.status {
                JobStatus::Succeeded => Ok(()),
                status => Err(Failure::new(format!("the job has {status}"))),
            };
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn describe(event: &JobEvent) -> String {
    let time = event.created_at.format("%H:%M:%S%.3f");
    let data = if event.data == json!({}) { String::new() } else { event.data.to_string() };
    format!("{time}  {:<13}  {data}", event.kind)
}
