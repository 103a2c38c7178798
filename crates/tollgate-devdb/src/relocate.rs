//! Where the cluster goes if the server's user cannot reach the data directory.
//!
//! Root's home is 0700, and so is every directory that mkdtemp or pytest makes: another user gets to
//! nothing beneath. Opening them up is not for us to do, so the cluster goes to
//! `/var/lib/tollgate/clusters/ID/postgres`. The data directory keeps the id, in `postgres.cluster`, and the
//! cluster's directory keeps the data directory's path, in `owner`. A cluster belongs to a data directory
//! while each names the other; one that has lost its owner is removed at the next start that root makes.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, IoContext as _},
    layout::{self, Layout, PGDATA, POINTER},
    lock,
    privileges::Identity,
    random, strays, sys,
};

const CLUSTERS: &str = "/var/lib/tollgate/clusters";
const OWNER: &str = "owner";

/// Where the cluster of this data directory is or goes, and who runs its server. Also collects clusters that
/// have lost their owner. The caller holds the data directory's lock.
pub(crate) fn settle(data_dir: PathBuf) -> Result<(Layout, Identity), Error> {
    let layout = find(data_dir)?;
    let identity = if layout.pgdata().exists() {
        Identity::for_cluster(&layout.pgdata())?
    } else {
        Identity::for_new_cluster()?
    };
    if identity.can_enter(&layout.base)? {
        return Ok((layout, identity));
    }
    // A cluster that is there already was reachable once: moving it is not for us to do.
    if layout.cluster_version()?.is_some() || layout.base != layout.data_dir {
        return Err(Error::Unreachable { path: layout.base, user: identity.name() });
    }
    let base = Registry::open(Path::new(CLUSTERS))?.create(&layout.data_dir)?;
    if !identity.can_enter(&base)? {
        return Err(Error::Unreachable { path: base, user: identity.name() });
    }
    Ok((Layout { base, ..layout }, identity))
}

/// Where the cluster of this data directory is, or would be if the server's user can reach that.
pub(crate) fn find(data_dir: PathBuf) -> Result<Layout, Error> {
    let here = Layout { base: data_dir.clone(), data_dir };
    let clusters = Path::new(CLUSTERS);
    let uid = sys::effective_uid();
    if uid != 0 {
        let pointer = here.data_dir.join(POINTER);
        let is_elsewhere = pointer.exists() && !here.pgdata().exists();
        return if is_elsewhere {
            Err(Error::OwnedByAnother { path: pointer, owner: 0, uid })
        } else {
            Ok(here)
        };
    }
    if !clusters.exists() {
        return Ok(here);
    }
    let registry = Registry::open(clusters)?;
    registry.collect();
    if here.pgdata().exists() {
        return Ok(here);
    }
    Ok(match registry.claim(&here.data_dir)? {
        Some(base) => Layout { base, ..here },
        None => here,
    })
}

/// `/var/lib/tollgate/clusters`, locked: nobody else reads or changes who owns which cluster meanwhile.
struct Registry {
    dir: PathBuf,
    _lock: File,
}

impl Registry {
    fn open(dir: &Path) -> Result<Registry, Error> {
        loop {
            for path in dir.parent().into_iter().chain([dir]) {
                match layout::create_dir(path, 0o755) {
                    Err(Error::Io { cause, .. }) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                    outcome => outcome?,
                }
            }
            let lock = File::open(dir).when("open", dir)?;
            lock.lock().when("lock", dir)?;
            if lock::is_still_at(&lock, dir) {
                return Ok(Registry { dir: dir.to_owned(), _lock: lock });
            }
        }
    }

    /// The directory of the cluster that the data directory points to, if that is so and it may have it.
    fn claim(&self, data_dir: &Path) -> Result<Option<PathBuf>, Error> {
        let Some(base) = pointer(data_dir).map(|id| self.dir.join(id)).filter(|base| base.is_dir()) else {
            return Ok(None);
        };
        match owner(&base) {
            Some(owner) if owner == data_dir => Ok(Some(base)),
            // A copy of the data directory: the original has the cluster, the copy gets a new one.
            Some(owner) if points_to(&owner, &base) => Ok(None),
            // The data directory was moved here.
            _ => {
                write_owner(&base, data_dir)?;
                Ok(Some(base))
            }
        }
    }

    /// A new directory for the data directory's cluster.
    fn create(&self, data_dir: &Path) -> Result<PathBuf, Error> {
        let id = random::hex::<8>()?;
        let base = self.dir.join(&id);
        layout::create_dir(&base, 0o755)?;
        write_owner(&base, data_dir)?;
        layout::write(&data_dir.join(POINTER), &id, 0o644)?;
        Ok(base)
    }

    /// Removes the clusters that have lost their owner. What cannot be removed now, can be another time.
    fn collect(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let base = entry.path();
            let lost = owner(&base).is_none_or(|owner| !points_to(&owner, &base));
            if is_id(&entry.file_name()) && lost && strays::processes(&base.join(PGDATA)).is_empty() {
                let _ = layout::remove_dir(&base);
            }
        }
    }
}

/// The id of the cluster that the data directory points to.
fn pointer(data_dir: &Path) -> Option<String> {
    layout::read(&data_dir.join(POINTER)).ok()?.filter(|id| is_id(OsStr::new(id)))
}

fn points_to(data_dir: &Path, base: &Path) -> bool {
    pointer(data_dir).is_some_and(|id| base.file_name() == Some(OsStr::new(&id)))
}

/// Nothing else is ever looked at or removed: a file in a data directory must not lead root astray.
fn is_id(name: &OsStr) -> bool {
    name.len() == 16 && name.as_bytes().iter().all(u8::is_ascii_hexdigit)
}

fn owner(base: &Path) -> Option<PathBuf> {
    let bytes = fs::read(base.join(OWNER)).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(bytes.strip_suffix(b"\n").unwrap_or(&bytes))))
}

fn write_owner(base: &Path, data_dir: &Path) -> Result<(), Error> {
    let file = base.join(OWNER);
    fs::write(&file, [data_dir.as_os_str().as_bytes(), b"\n"].concat()).when("write", &file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_follows_its_data_directory_and_goes_with_it() {
        let root = tempfile::tempdir().unwrap();
        let open = || Registry::open(&root.path().join("clusters")).unwrap();
        let [first, moved, copy] = ["first", "moved", "copy"].map(|name| root.path().join(name));
        fs::create_dir(&first).unwrap();

        let registry = open();
        assert_eq!(registry.claim(&first).unwrap(), None);
        let base = registry.create(&first).unwrap();
        registry.collect();
        assert_eq!(registry.claim(&first).unwrap().as_ref(), Some(&base));

        fs::create_dir(&copy).unwrap();
        fs::copy(first.join(POINTER), copy.join(POINTER)).unwrap();
        assert_eq!(registry.claim(&copy).unwrap(), None, "the original still has it");
        assert_ne!(registry.create(&copy).unwrap(), base);

        fs::rename(&first, &moved).unwrap();
        assert_eq!(registry.claim(&moved).unwrap().as_ref(), Some(&base), "moved, and kept");
        registry.collect();
        assert!(base.exists());

        drop(registry);
        fs::remove_dir_all(&moved).unwrap();
        fs::create_dir(root.path().join("clusters/not-an-id")).unwrap();
        open().collect();
        assert!(!base.exists(), "nobody's any more");
        assert!(root.path().join("clusters/not-an-id").exists(), "never ours");
        assert_eq!(fs::read_dir(root.path().join("clusters")).unwrap().count(), 2);
    }

    #[test]
    fn a_pointer_leads_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        for text in ["../../etc", "/etc", "", "0123456789abcdeg", "0123456789abcdef0"] {
            fs::write(root.path().join(POINTER), text).unwrap();
            assert_eq!(pointer(root.path()), None, "{text}");
        }
        fs::write(root.path().join(POINTER), "0123456789abcdef\n").unwrap();
        assert_eq!(pointer(root.path()).as_deref(), Some("0123456789abcdef"));
    }
}
