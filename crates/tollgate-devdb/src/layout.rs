//! Where things are, and the small files among them.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, IoContext as _},
    random, sys,
};

/// The cluster's name, in a data directory or in a directory beneath `/var/lib/tollgate/clusters`.
pub(crate) const PGDATA: &str = "postgres";
/// The lock file's name.
pub(crate) const LOCK: &str = "postgres.lock";
/// The name of the file that points to a cluster elsewhere.
pub(crate) const POINTER: &str = "postgres.cluster";
const LOG: &str = "postgres.log";
const OLD_LOG: &str = "postgres.log.1";
const PASSWORD: &str = "postgres.password";
const PORT: &str = "postgres.port";

/// The paths of one data directory.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// The data directory, absolute and without symlinks.
    pub(crate) data_dir: PathBuf,
    /// The directory that holds the cluster: the data directory, or one beneath `/var/lib/tollgate`.
    pub(crate) base: PathBuf,
}

impl Layout {
    pub(crate) fn pgdata(&self) -> PathBuf {
        self.base.join(PGDATA)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.data_dir.join(LOG)
    }

    pub(crate) fn old_log(&self) -> PathBuf {
        self.data_dir.join(OLD_LOG)
    }

    /// The major version that made the cluster; `None` if there is none yet.
    pub(crate) fn cluster_version(&self) -> Result<Option<u32>, Error> {
        let pgdata = self.pgdata();
        match fs::read_to_string(pgdata.join("PG_VERSION")) {
            Ok(text) => text.trim().parse().map(Some).map_err(|_| Error::NotACluster { path: pgdata }),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                // An empty directory is fine: initdb's rename puts the cluster in its place.
                let is_empty = fs::read_dir(&pgdata).is_ok_and(|mut entries| entries.next().is_none());
                if pgdata.exists() && !is_empty { Err(Error::NotACluster { path: pgdata }) } else { Ok(None) }
            }
            Err(cause) => Err(cause).when("read", &pgdata),
        }
    }

    /// The password of the cluster's owner. A missing one is made if there is no cluster yet.
    pub(crate) fn password(&self, has_cluster: bool) -> Result<String, Error> {
        let path = self.data_dir.join(PASSWORD);
        let kept = read(&path)?.filter(|text| text.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        match kept {
            Some(password) if !password.is_empty() => Ok(password),
            _ if has_cluster => Err(Error::PasswordMissing { path }),
            _ => {
                let password = random::hex::<24>()?;
                write(&path, &password, 0o600)?;
                Ok(password)
            }
        }
    }

    /// The port of the last start.
    pub(crate) fn last_port(&self) -> Option<u16> {
        read(&self.data_dir.join(PORT)).ok().flatten()?.parse().ok()
    }

    pub(crate) fn remember_port(&self, port: u16) -> Result<(), Error> {
        if self.last_port() == Some(port) {
            return Ok(());
        }
        write(&self.data_dir.join(PORT), &port.to_string(), 0o644)
    }

    /// Removes a cluster on which nothing runs, and every file of ours in the data directory but the lock.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        remove_dir(&self.pgdata())?;
        if self.base != self.data_dir {
            remove_dir(&self.base)?;
        }
        for name in [LOG, OLD_LOG, PASSWORD, PORT, POINTER] {
            remove_file(&self.data_dir.join(name))?;
        }
        Ok(())
    }
}

/// Makes the data directory if it is missing, and returns its absolute path.
pub(crate) fn prepare(data_dir: &Path) -> Result<PathBuf, Error> {
    make_way(data_dir)?;
    fs::canonicalize(data_dir).when("resolve", data_dir)
}

/// Makes a directory and what is missing above it. The server's user must get past each one that root makes under a
/// strict umask; it can read nothing there, since our files have modes of their own.
fn make_way(directory: &Path) -> Result<(), Error> {
    match (fs::create_dir(directory), directory.parent()) {
        (Err(cause), Some(parent)) if cause.kind() == io::ErrorKind::NotFound => {
            make_way(parent)?;
            make_way(directory)
        }
        (Err(cause), _) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        (Err(cause), _) => Err(cause).when("create", directory),
        (Ok(()), _) if sys::effective_uid() == 0 => {
            let mode = fs::metadata(directory).when("read", directory)?.permissions().mode();
            fs::set_permissions(directory, fs::Permissions::from_mode(mode | 0o011))
                .when("set the mode of", directory)
        }
        (Ok(()), _) => Ok(()),
    }
}

/// Makes one directory with exactly this mode, whatever the umask.
pub(crate) fn create_dir(path: &Path, mode: u32) -> Result<(), Error> {
    fs::DirBuilder::new().mode(mode).create(path).when("create", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).when("set the mode of", path)
}

/// A small file's text without its last newline; `None` if there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end_matches('\n').to_owned())),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(cause).when("read", path),
    }
}

/// Writes a small file whole or not at all: into a sibling first, which is then renamed.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let sibling = path.with_added_extension("new");
    remove_file(&sibling)?;
    let mut options = fs::OpenOptions::new();
    let open = options.write(true).create_new(true).mode(mode).open(&sibling);
    open.and_then(|mut file| writeln!(file, "{text}")).when("write", &sibling)?;
    fs::rename(&sibling, path).when("write", path)
}

/// Removes a file that may be missing.
pub(crate) fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause).when("remove", path),
        _ => Ok(()),
    }
}

/// Removes a directory that may be missing, with everything in it.
pub(crate) fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause).when("remove", path),
        _ => Ok(()),
    }
}
