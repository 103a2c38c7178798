//! A plan as PostgreSQL carried it out.

use std::collections::BTreeSet;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};

#[derive(Debug, Default)]
pub(crate) struct Explained {
    pub(crate) indexes: BTreeSet<String>,
    /// Rows of `queue.tasks` that scans came upon, whether they kept them or not.
    pub(crate) rows: i64,
    /// Rows of anything that scans came upon.
    pub(crate) touched: i64,
    /// Pages that were looked at; those of a CTE that is part of another are counted twice.
    pub(crate) buffers: i64,
    /// Nodes that read all of a table, or sort or hash what they read of one.
    pub(crate) forbidden: Vec<String>,
}

/// Carries out what was prepared by this name. The first time, it is planned; and again whenever PostgreSQL has thrown
/// the plan away.
pub(crate) async fn explain(conn: &mut PgConnection, name: &str, arguments: &str) -> Explained {
    let arguments = if arguments.is_empty() { String::new() } else { format!("({arguments})") };
    let execute = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {name} {arguments}");
    let asked: Result<Value, _> = sqlx::query_scalar(AssertSqlSafe(execute.clone())).fetch_one(conn).await;
    let plan = asked.unwrap_or_else(|error| panic!("{execute}: {error}"));
    let mut explained = Explained::default();
    walk(&plan[0]["Plan"], &mut explained, true);
    explained
}

fn walk(node: &Value, explained: &mut Explained, top: bool) {
    let text = |key: &str| node[key].as_str().unwrap_or_default();
    let number = |key: &str| node[key].as_f64().unwrap_or(0.0);
    let (kind, relation) = (text("Node Type"), text("Relation Name"));
    if let Some(index) = node["Index Name"].as_str() {
        explained.indexes.insert(index.to_owned());
    }
    #[expect(clippy::cast_possible_truncation, reason = "counts")]
    if !relation.is_empty() && kind != "ModifyTable" {
        // Per loop, and rounded; a loop that found nothing is none.
        let found = number("Actual Rows")
            + number("Rows Removed by Filter")
            + number("Rows Removed by Index Recheck");
        let rows = (found * number("Actual Loops")).round() as i64;
        explained.touched += rows;
        if relation == "tasks" {
            explained.rows += rows;
        }
    }
    if top || text("Parent Relationship") == "InitPlan" {
        let blocks = |key: &str| node[key].as_i64().unwrap_or(0);
        explained.buffers += blocks("Shared Hit Blocks") + blocks("Shared Read Blocks");
    }
    // What an operator has set for a queue, and who works, is a handful of rows.
    let small = ["queues", "workers"].contains(&relation);
    if (kind == "Seq Scan" && !small) || ["Hash Join", "Merge Join", "Bitmap Heap Scan"].contains(&kind) {
        explained.forbidden.push(format!("{kind} {relation}"));
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        walk(child, explained, false);
    }
}
