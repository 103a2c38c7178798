//! The tables: each figure a median over rounds, each ratio the median of the rounds' own ratios.

use super::ledger::{Depth, FEW};
use super::recognition::Rates;
use super::{Part, Round, Run};
use crate::percentile;

/// Where there is no figure.
const NONE: &str = "–";

pub(crate) fn print(rounds: &[Round], connections: &[usize], ledger_rows: u64) {
    figures(rounds, connections);
    ratios(rounds, connections);
    if rounds.iter().any(|round| round.few_entries.is_some()) {
        depths(rounds, ledger_rows);
    }
    if rounds.iter().any(|round| round.keys.is_some()) {
        keys(rounds);
    }
    let commits = |at: usize| {
        let all: Vec<String> = rounds.iter().map(|round| format!("{:.2}", round.commit_ms[at])).collect();
        all.join(", ")
    };
    println!("\nA lone commit, ms, before each round: {}; after: {}", commits(0), commits(1));
}

fn figures(rounds: &[Round], connections: &[usize]) {
    println!("µs: processor time, of one submit or enqueue\n");
    let columns = "| | connections | /s | PostgreSQL µs | of it background | API µs | client µs | commits | WAL syncs | WAL bytes | others, processors |";
    header(columns);
    for part in [Part::Many, Part::Hot, Part::PgBoss, Part::GraphileWorker, Part::Raw] {
        for &connections in connections {
            let figure = |figure: fn(&Run) -> f64, digits| {
                text(median(rounds, |round| run(round, part, connections).map(figure)), digits)
            };
            // A peer's sessions have ended when it is looked at, and are no longer told from the rest.
            let over_http =
                |figure: String| if matches!(part, Part::Many | Part::Hot) { figure } else { NONE.into() };
            let per_sec = figure(|run| run.per_sec, 0);
            if per_sec == NONE {
                continue;
            }
            println!(
                "| {} | {connections} | {per_sec} | {} | {} | {} | {} | {} | {} | {} | {} |",
                title(part),
                figure(|run| run.cost.sessions + run.cost.postgres_rest, 0),
                over_http(figure(|run| run.cost.postgres_rest, 0)),
                over_http(figure(|run| run.cost.api, 0)),
                figure(|run| run.cost.client, 0),
                figure(|run| run.cost.commits, 2),
                figure(|run| run.cost.wal_syncs, 2),
                figure(|run| run.cost.wal_bytes, 0),
                figure(|run| run.cost.others, 2),
            );
        }
    }
}

fn ratios(rounds: &[Round], connections: &[usize]) {
    let columns: Vec<String> = connections.iter().map(|count| format!("{count} connections")).collect();
    println!();
    header(&format!("| | target | {} |", columns.join(" | ")));
    let row = |name: &str, target: &str, figure: &dyn Fn(&Round, usize) -> Option<f64>| {
        let cells: Vec<String> =
            connections.iter().map(|&count| text(median(rounds, |round| figure(round, count)), 2)).collect();
        if cells.iter().any(|cell| cell != NONE) {
            println!("| {name} | {target} | {} |", cells.join(" | "));
        }
    };
    for (over, under, target) in [
        (Part::Many, Part::PgBoss, "3"),
        (Part::Many, Part::GraphileWorker, "3"),
        (Part::Many, Part::Raw, "0.4"),
        (Part::Hot, Part::Many, "0.8"),
        (Part::Hot, Part::Raw, ""),
    ] {
        let name = format!("{} ÷ {}", title(over), title(under));
        row(&name, target, &|round, count| {
            Some(run(round, over, count)?.per_sec / run(round, under, count)?.per_sec)
        });
    }
    for part in [Part::Many, Part::Hot] {
        let half = |round: &Round, count| run(round, part, count)?.half_ms;
        let name = format!("{}, at half of that rate:", title(part));
        row(&format!("{name} p50 ms"), "", &|round, count| Some(half(round, count)?.0));
        row(&format!("{name} p99 ms"), "25", &|round, count| Some(half(round, count)?.1));
    }
}

fn depths(rounds: &[Round], ledger_rows: u64) {
    println!();
    header(&format!("| | target | {FEW} entries | {ledger_rows} entries | ratio |"));
    let row = |name: &str, figure: fn(&Depth) -> Option<f64>| {
        let few = |round: &Round| figure(round.few_entries.as_ref()?);
        let many = |round: &Round| figure(round.many_entries.as_ref()?);
        let ratio = median(rounds, |round| Some(many(round)? / few(round)?));
        let (few, many) = (text(median(rounds, few), 0), text(median(rounds, many), 0));
        println!("| {name} | 1 | {few} | {many} | {} |", text(ratio, 2));
    };
    row("balance read, /s", |depth| depth.balances_per_sec);
    row("submit, /s", |depth| Some(depth.submits_per_sec));
}

fn keys(rounds: &[Round]) {
    let figure = |figure: fn(&Rates) -> f64| text(median(rounds, |round| round.keys.as_ref().map(figure)), 0);
    println!();
    header("| | target | measured |");
    println!("| keys recognised by one thread, /s | 10000 | {} |", figure(|rates| rates.per_sec));
    println!("| the same, a second of its processor time | | {} |", figure(|rates| rates.per_cpu_sec));
}

/// Prints a table's first two lines.
fn header(columns: &str) {
    println!("{columns}\n|{}", "---|".repeat(columns.matches('|').count() - 1));
}

fn title(part: Part) -> &'static str {
    match part {
        Part::PgBoss => "pg-boss",
        Part::GraphileWorker => "graphile-worker",
        Part::Raw => "raw insert",
        Part::Many => "HTTP submit, 100 accounts",
        Part::Hot => "HTTP submit, one hot account",
        Part::Ledger => "ledger",
        Part::Keys => "keys",
    }
}

fn run(round: &Round, part: Part, connections: usize) -> Option<&Run> {
    round.runs.iter().find(|run| run.part == part && run.connections == connections)
}

/// Over those rounds that have the figure.
fn median(rounds: &[Round], figure: impl Fn(&Round) -> Option<f64>) -> Option<f64> {
    let mut values: Vec<f64> = rounds.iter().filter_map(figure).collect();
    (!values.is_empty()).then(|| percentile(&mut values, 0.5))
}

fn text(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| format!("{value:.digits$}"))
}
