//! Directories for clusters that nobody keeps.
//!
//! Each is removed with its server, and if the process that made it was killed, by the next that makes one:
//! the directory's name holds its maker's pid.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, IoContext as _},
    initdb, layout,
    lock::Lock,
    random, relocate, sys,
};

const PREFIX: &str = "tollgate-postgres-";

/// A directory that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    gone: bool,
}

impl Scratch {
    /// Makes one in the system's directory for temporary files, and removes those that were abandoned.
    pub(crate) fn create() -> Result<Scratch, Error> {
        Scratch::create_in(&std::env::temp_dir())
    }

    fn create_in(parent: &Path) -> Result<Scratch, Error> {
        collect(parent);
        let path = parent.join(format!("{PREFIX}{}-{}", std::process::id(), random::hex::<4>()?));
        // The server's user may pass, so that root's clusters can be here too; it finds nothing to read.
        layout::create_dir(&path, 0o711)?;
        Ok(Scratch { path, gone: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn remove(mut self) -> Result<(), Error> {
        self.gone = true;
        remove(&self.path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.gone {
            // Whoever wants to know how it went calls `remove`.
            let _ = remove(&self.path);
        }
    }
}

/// Removes a directory and its cluster, which may be elsewhere, unless somebody uses it.
fn remove(path: &Path) -> Result<(), Error> {
    let dir = fs::canonicalize(path).when("resolve", path)?;
    let _lock = Lock::acquire(&dir)?;
    let layout = relocate::find(dir)?;
    initdb::undo(&layout)?;
    layout::remove_dir(path)
}

fn collect(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        let is_abandoned = maker.is_some_and(|pid| !sys::exists(pid));
        let is_ours = entry.metadata().is_ok_and(|dir| dir.is_dir() && dir.uid() == sys::effective_uid());
        if is_abandoned && is_ours {
            // In use after all (by a maker in another pid namespace), or not removable: leave it.
            let _ = remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_abandoned_are_removed_and_the_rest_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let first = Scratch::create_in(parent.path()).unwrap();
        // No pid is that high.
        let [abandoned, used, foreign] =
            ["tollgate-postgres-2000000000-00", "tollgate-postgres-2000000000-01", "other"]
                .map(|name| parent.path().join(name));
        for dir in [&abandoned, &used, &foreign] {
            fs::create_dir(dir).unwrap();
        }
        let _lock = Lock::acquire(&used).unwrap();
        let second = Scratch::create_in(parent.path()).unwrap();
        assert!(!abandoned.exists());
        assert!(used.exists() && foreign.exists() && first.path().exists());
        second.remove().unwrap();
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists());
    }
}
