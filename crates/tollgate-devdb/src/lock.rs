//! One Tollgate per data directory.
//!
//! The lock is the kernel's (`flock`), not the file's existence: it vanishes with its holder however that
//! dies, so there are no stale locks to guess about. The pid in the file is for the error message only.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    clock,
    error::{Error, IoContext as _},
    layout,
};

/// How long a lock is tried that somebody has. A holder that was killed at the wrong moment has a child that
/// shares the lock until it has executed its program.
const GRACE: Duration = Duration::from_millis(500);

/// Holds the data directory until dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock, or says who has it.
    pub(crate) fn acquire(data_dir: &Path) -> Result<Lock, Error> {
        let path = data_dir.join(layout::LOCK);
        let outcome = clock::wait_for(GRACE, || Lock::attempt(&path).transpose());
        outcome.unwrap_or_else(|| Err(Error::Locked { data_dir: data_dir.to_owned(), pid: holder(&path) }))
    }

    /// Takes the lock if it can be had at this moment.
    fn attempt(path: &Path) -> Result<Option<Lock>, Error> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let mut file = options.open(path).when("open", path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(cause)) => return Err(cause).when("lock", path),
        }
        // Its last holder may have removed the file after we opened it: then this is a lock that nobody
        // else will ever look at.
        if !is_still_at(&file, path) {
            return Ok(None);
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).when("write", path)?;
        Ok(Some(Lock { path: path.to_owned(), _file: file }))
    }

    /// Removes the file with the lock held, as the last act on a data directory that is given up.
    pub(crate) fn remove(self) -> Result<(), Error> {
        layout::remove_file(&self.path)
    }
}

/// Whether the open file is the one that the path names now.
pub(crate) fn is_still_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

/// The pid in a lock file that somebody else holds.
fn holder(path: &Path) -> Option<u32> {
    layout::read(path).ok()??.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_and_told_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::acquire(dir.path()).unwrap();
        let refused = Lock::acquire(dir.path()).unwrap_err();
        assert!(matches!(&refused, Error::Locked { pid: Some(pid), .. } if *pid == std::process::id()));
        assert!(refused.to_string().contains(&format!("in use by process {}", std::process::id())));
        drop(first);
        let again = Lock::acquire(dir.path()).unwrap();
        again.remove().unwrap();
        assert!(!dir.path().join(layout::LOCK).exists());
    }
}
