//! Processor time, in nanoseconds, as the kernel tells it under /proc.

use std::fs;

use crate::Result;

/// The kernel counts the time of ended processes, and of the machine, in ticks of 10 ms.
const TICK_NANOS: u64 = 10_000_000;

/// Of a process's living threads.
pub(crate) fn of(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let schedule = fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += schedule.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(sum)
}

/// Of this process's living threads.
pub(crate) fn own() -> Result<u64> {
    of(std::process::id())
}

/// Of a process's children that have ended.
pub(crate) fn of_ended_children(pid: u32) -> Result<u64> {
    let fields = stat(pid).ok_or("no such process")?;
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Ok((ticks(13) + ticks(14)) * TICK_NANOS)
}

/// What PostgreSQL has used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Postgres {
    /// By the sessions of clients that are still connected.
    pub(crate) sessions: u64,
    /// By everything else: WAL writer, checkpointer, autovacuum, and sessions that have ended.
    pub(crate) rest: u64,
}

/// Of a postmaster and its children.
pub(crate) fn of_postgres(postmaster: u32) -> Result<Postgres> {
    let mut sum = Postgres { sessions: 0, rest: of(postmaster)? + of_ended_children(postmaster)? };
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let parent = stat(pid).and_then(|fields| fields.get(1)?.parse::<u32>().ok());
        if parent != Some(postmaster) {
            continue;
        }
        // One that ends just now is counted with the ended ones the next time.
        let (Ok(title), Ok(used)) = (fs::read_to_string(format!("/proc/{pid}/cmdline")), of(pid)) else {
            continue;
        };
        // "postgres: USER DATABASE ADDRESS(PORT) …"
        let of_session = title.contains(" 127.0.0.1(");
        *(if of_session { &mut sum.sessions } else { &mut sum.rest }) += used;
    }
    Ok(sum)
}

/// Of everybody on this machine.
pub(crate) fn of_machine() -> Result<u64> {
    let all = fs::read_to_string("/proc/stat")?;
    let first = all.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq
    let busy = [0, 1, 2, 5, 6].into_iter().filter_map(|index| ticks.get(index)).sum::<u64>();
    Ok(busy * TICK_NANOS)
}

/// The fields of /proc/PID/stat from the state on: those before it may hold spaces.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}
