//! The server's log file.
//!
//! We open it and hand it over as the server's stderr, so the server's user needs no right to it, and
//! it can be where the caller looks even if the cluster is elsewhere.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::error::{Error, IoContext as _};

/// A log that has grown beyond this many bytes is put aside at the next start.
const ROTATE_AT: u64 = 16 * 1024 * 1024;
/// How much of its end an error quotes: at most so many lines, and bytes.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: u64 = 16 * 1024;

#[derive(Debug, Clone)]
pub(crate) struct Log {
    path: PathBuf,
}

impl Log {
    pub(crate) fn new(path: PathBuf) -> Log {
        Log { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a log that has grown too long aside, in the place of the one before it.
    pub(crate) fn rotate(&self, aside: &Path) -> Result<(), Error> {
        if self.len() > ROTATE_AT {
            fs::rename(&self.path, aside).when("rename", &self.path)?;
        }
        Ok(())
    }

    /// Opens it for appending. Statements are in it, so nobody else may read it.
    pub(crate) fn open(&self) -> Result<File, Error> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path).when("open", &self.path)
    }

    /// Its length in bytes: what comes later is found from here.
    pub(crate) fn len(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    /// The last lines that were written at or after `offset`.
    pub(crate) fn tail(&self, offset: u64) -> String {
        let start = offset.max(self.len().saturating_sub(TAIL_BYTES));
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(start))?;
            file.read_to_end(&mut bytes)
        });
        if let Err(cause) = read {
            return format!("(it cannot be read: {cause})");
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Says there what the supervisor did. Losing such a line is no reason to fail.
    pub(crate) fn note(&self, text: &str) {
        if let Ok(mut file) = self.open() {
            let _ = writeln!(file, "tollgate: {text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines_after_the_offset() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(dir.path().join("log"));
        log.note("before");
        let offset = log.len();
        assert_eq!(log.tail(offset), "");
        for line in 0..30 {
            log.note(&line.to_string());
        }
        let tail = log.tail(offset);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.starts_with("tollgate: 10\n") && tail.ends_with("tollgate: 29"), "{tail}");
    }

    #[test]
    fn a_long_log_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (log, aside) = (Log::new(dir.path().join("log")), dir.path().join("log.1"));
        log.open().unwrap().set_len(ROTATE_AT).unwrap();
        log.rotate(&aside).unwrap();
        assert!(!aside.exists());
        log.note("one line more");
        log.rotate(&aside).unwrap();
        assert!(aside.exists() && !log.path().exists());
    }
}
