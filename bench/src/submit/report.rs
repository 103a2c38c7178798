//! The tables: each figure a median over rounds, each ratio the median of the rounds' own ratios.

use super::arena::Cost;
use super::ledger::{Depth, FEW};
use super::recognition::Rates;
use super::{Part, Round, Run};
use crate::percentile;

pub(crate) fn print(rounds: &[Round], connections: &[usize], ledger_rows: u64) {
    figures(rounds, connections);
    ratios(rounds, connections, ledger_rows);
    let commits = |at: usize| {
        let all: Vec<String> = rounds.iter().map(|round| format!("{:.2}", round.commit_ms[at])).collect();
        all.join(", ")
    };
    println!("\nA lone commit, ms, before each round: {}; after: {}", commits(0), commits(1));
}

fn figures(rounds: &[Round], connections: &[usize]) {
    println!("µs: processor time, of one submit or enqueue\n");
    println!(
        "| | connections | /s | PostgreSQL µs | of it background | API µs | client µs | everybody else µs | commits | WAL syncs | WAL bytes |\n|{}",
        "---|".repeat(11)
    );
    for part in [Part::Many, Part::Hot, Part::PgBoss, Part::GraphileWorker, Part::Raw] {
        for &connections in connections {
            let of =
                |figure: fn(&Run) -> f64| median(rounds, |round| run(round, part, connections).map(figure));
            let cost = |figure: fn(&Cost) -> f64| {
                median(rounds, |round| run(round, part, connections).map(|run| figure(&run.cost)))
            };
            let Some(per_sec) = of(|run| run.per_sec) else { continue };
            let over_http = matches!(part, Part::Many | Part::Hot);
            let if_http = |value: Option<f64>| value.filter(|_| over_http);
            println!(
                "| {} | {connections} | {per_sec:.0} | {} | {} | {} | {} | {} | {} | {} | {} |",
                title(part),
                text(cost(|cost| cost.sessions + cost.postgres_rest), 0),
                // A peer's sessions have ended when it is looked at, and are no longer told apart.
                text(if_http(cost(|cost| cost.postgres_rest)), 0),
                text(if_http(cost(|cost| cost.api)), 0),
                text(cost(|cost| cost.client), 0),
                text(cost(|cost| cost.others), 0),
                text(cost(|cost| cost.commits), 2),
                text(cost(|cost| cost.wal_syncs), 2),
                text(cost(|cost| cost.wal_bytes), 0),
            );
        }
    }
}

fn ratios(rounds: &[Round], connections: &[usize], ledger_rows: u64) {
    let columns: Vec<String> = connections.iter().map(|count| format!("{count} connections")).collect();
    println!("\n| | target | {} |\n|---|---|{}", columns.join(" | "), "---|".repeat(columns.len()));
    let row = |name: &str, target: &str, figure: &dyn Fn(&Round, usize) -> Option<f64>| {
        let cells = connections.iter().map(|&count| text(median(rounds, |round| figure(round, count)), 2));
        println!("| {name} | {target} | {} |", cells.collect::<Vec<_>>().join(" | "));
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
        row(&format!("{}, at half of that rate: p50 ms", title(part)), "", &|round, count| {
            Some(half(round, count)?.0)
        });
        row(&format!("{}, the same: p99 ms", title(part)), "25", &|round, count| Some(half(round, count)?.1));
    }
    println!("\n| | target | {FEW} entries | {ledger_rows} entries | ratio |\n|---|---|---|---|---|");
    let balances = |depth: &Depth| depth.balances_per_sec;
    let submits = |depth: &Depth| Some(depth.submits_per_sec);
    for (name, figure) in
        [("balance read, /s", &balances as &dyn Fn(&Depth) -> Option<f64>), ("submit, /s", &submits)]
    {
        let few = |round: &Round| figure(&round.few_entries?);
        let many = |round: &Round| figure(&round.many_entries?);
        let ratio = median(rounds, |round| Some(many(round)? / few(round)?));
        let (few, many) = (text(median(rounds, few), 0), text(median(rounds, many), 0));
        println!("| {name} | 1 | {few} | {many} | {} |", text(ratio, 2));
    }
    let keys = |figure: fn(&Rates) -> f64| text(median(rounds, |round| round.keys.as_ref().map(figure)), 0);
    println!("\n| | target | measured |\n|---|---|---|");
    println!("| keys recognised by one thread, /s | 10000 | {} |", keys(|rates| rates.per_sec));
    println!("| the same, a second of its processor time | | {} |", keys(|rates| rates.per_cpu_sec));
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
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}
