//! A directory: one file an image, in one directory an account.
//!
//! A file appears under its name whole or not at all, and never takes another's place. What a killed process leaves of a
//! file that was not finished is called `.unfinished…`, and may be removed.
//!
//! Paths are made of [`StorageKey`]s, which hold two names of letters, digits and hyphens, so none leads out.

use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::{fs, sync::Arc};

use tollgate_model::image::StorageKey;

use super::ImageStoreError;

/// Readable to the group: API and worker may run as two users.
const FILE_MODE: u32 = 0o640;

#[derive(Debug)]
pub(super) struct Directory(Arc<Path>);

impl Directory {
    /// Makes the directory and sees that files can be made in it, so that a mistake shows at start.
    pub(super) fn open(path: PathBuf) -> Result<Self, ImageStoreError> {
        let cannot =
            |error: io::Error| ImageStoreError::new(format!("cannot use {}: {error}", path.display()));
        fs::create_dir_all(&path).map_err(cannot)?;
        tempfile::Builder::new().prefix(".unfinished").tempfile_in(&path).map_err(cannot)?;
        Ok(Self(path.into()))
    }

    /// `false`: there is a file already.
    pub(super) async fn create(&self, key: &StorageKey, bytes: &[u8]) -> Result<bool, ImageStoreError> {
        // A copy, since a thread that was begun cannot be called off.
        let (path, bytes) = (self.0.join(key.as_str()), bytes.to_vec());
        blocking(move || create(&path, &bytes)).await
    }

    pub(super) async fn read(&self, key: &StorageKey) -> Result<Option<Vec<u8>>, ImageStoreError> {
        let path = self.0.join(key.as_str());
        blocking(move || found(fs::read(path))).await
    }

    pub(super) async fn remove(&self, key: &StorageKey) -> Result<(), ImageStoreError> {
        let path = self.0.join(key.as_str());
        blocking(move || found(fs::remove_file(path))).await.map(|_| ())
    }
}

fn create(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent)?;
    let mut file = tempfile::Builder::new()
        .prefix(".unfinished")
        .permissions(fs::Permissions::from_mode(FILE_MODE))
        .tempfile_in(parent)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error.error),
    }
    // The name must be as durable as the row that will hold it.
    fs::File::open(parent)?.sync_all()?;
    Ok(true)
}

/// Nothing there is no error.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ImageStoreError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(ImageStoreError::new)?;
    done.map_err(ImageStoreError::new)
}

#[cfg(test)]
mod tests {
    use tollgate_model::account::AccountId;
    use tollgate_model::image::StorageKey;
    use uuid::Uuid;

    use super::*;
    use crate::tests::request;

    fn key() -> StorageKey {
        StorageKey::of(AccountId(Uuid::nil()), &tollgate_model::image::ContentKey::of(&request()))
    }

    #[tokio::test]
    async fn the_first_file_stays() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path().join("made/for/it")).unwrap();
        assert_eq!(directory.read(&key()).await.unwrap(), None);
        assert!(directory.create(&key(), b"first").await.unwrap());
        assert!(!directory.create(&key(), b"second").await.unwrap());
        assert_eq!(directory.read(&key()).await.unwrap().as_deref(), Some(&b"first"[..]));
        directory.remove(&key()).await.unwrap();
        directory.remove(&key()).await.unwrap();
        assert_eq!(directory.read(&key()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn many_at_once_leave_one_whole_file_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let directory = Arc::new(Directory::open(root.path().to_owned()).unwrap());
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0_u8..16 {
            let directory = Arc::clone(&directory);
            writers.spawn(async move { directory.create(&key(), &vec![writer; 100_000]).await.unwrap() });
        }
        let first = writers.join_all().await.into_iter().filter(|first| *first).count();
        assert_eq!(first, 1);
        let bytes = directory.read(&key()).await.unwrap().unwrap();
        assert!(bytes.len() == 100_000 && bytes.iter().all(|byte| *byte == bytes[0]), "it is mixed");
        let account = fs::read_dir(root.path()).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::read_dir(account).unwrap().count(), 1, "something was left behind");
    }

    #[test]
    fn a_directory_that_cannot_be_is_named_at_start() {
        let root = tempfile::NamedTempFile::new().unwrap();
        let error = Directory::open(root.path().join("beneath")).unwrap_err().to_string();
        assert!(error.contains("beneath"), "{error}");
    }
}
