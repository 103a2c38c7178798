//! `postmaster.pid`, the server's own account of itself.

use std::{fs, path::Path};

use crate::{error::Error, layout};

const NAME: &str = "postmaster.pid";

/// What of it is of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PidFile {
    /// Line 1. A file whose server was killed names a pid that may be anybody's by now.
    pub(crate) pid: u32,
    /// Line 8 says `ready`: the server takes connections.
    pub(crate) ready: bool,
}

/// Reads it, if there is a whole one.
pub(crate) fn read(pgdata: &Path) -> Option<PidFile> {
    parse(&fs::read_to_string(pgdata.join(NAME)).ok()?)
}

/// Removes it. The server does so when it stops in good order; a stale one with a recycled pid would keep
/// the next server from starting.
pub(crate) fn remove(pgdata: &Path) -> Result<(), Error> {
    layout::remove_file(&pgdata.join(NAME))
}

fn parse(text: &str) -> Option<PidFile> {
    let mut lines = text.lines();
    // A server in single-user mode writes its pid negative.
    let pid = lines.next()?.trim().trim_start_matches('-').parse().ok()?;
    let ready = lines.nth(6).is_some_and(|status| status.trim() == "ready");
    Some(PidFile { pid, ready })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_eighth_line_count() {
        let start = "4711\n/data/postgres\n1700000000\n20000\n\n127.0.0.1\n  1234   5678\n";
        assert_eq!(parse(start), Some(PidFile { pid: 4711, ready: false }));
        assert_eq!(parse(&format!("{start}starting\n")), Some(PidFile { pid: 4711, ready: false }));
        assert_eq!(parse(&format!("{start}ready   \n")), Some(PidFile { pid: 4711, ready: true }));
        assert_eq!(parse(""), None);
        assert_eq!(parse("no pid\n"), None);
    }
}
