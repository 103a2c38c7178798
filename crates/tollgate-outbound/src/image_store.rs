//! Where images are kept that are not kept in the database: a directory, or anything that speaks S3.
//!
//! Objects are written once and never changed. To keep one that is there already is to be told what is there: a job
//! whose worker was killed between this and its settlement is run again, may be answered with other bytes, and settles
//! with those of the first time, so that one key never stands for two images.
//!
//! `object_store` was rejected: its S3 needs aws-lc, or a client of our own behind its traits, and it repeats requests
//! by itself. What remains of S3 here is three requests, signed by `rusty-s3` and sent by the client of this crate.

mod directory;
mod s3;

use std::fmt::Display;
use std::path::PathBuf;

use tollgate_model::image::{GeneratedImage, StorageKey};

use self::directory::Directory;
use self::s3::S3;

pub use self::s3::S3Config;

use crate::ClientError;

/// Which kind of store, as it stands beside the image in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageStoreKind {
    /// A directory.
    Directory,
    /// S3.
    S3,
}

impl ImageStoreKind {
    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::S3 => "s3",
        }
    }
}

/// Why a store did not do what it was asked. For the log and, without its details, for nobody else.
#[derive(Debug, thiserror::Error)]
#[error("the image store: {0}")]
pub struct ImageStoreError(String);

impl ImageStoreError {
    fn new(what: impl Display) -> Self {
        Self(what.to_string())
    }
}

/// A store of images outside of the database.
#[derive(Debug)]
pub struct ImageStore(Backend);

#[derive(Debug)]
enum Backend {
    Directory(Directory),
    S3(Box<S3>),
}

impl ImageStore {
    /// A directory, made if it is not there. All processes, API and workers, must see the same one.
    pub fn directory(path: PathBuf) -> Result<Self, ImageStoreError> {
        Ok(Self(Backend::Directory(Directory::open(path)?)))
    }

    /// A bucket. Nothing is asked of it yet.
    pub fn s3(config: S3Config) -> Result<Self, ClientError> {
        Ok(Self(Backend::S3(Box::new(S3::new(config)?))))
    }

    /// Which kind this is.
    pub fn kind(&self) -> ImageStoreKind {
        match &self.0 {
            Backend::Directory(_) => ImageStoreKind::Directory,
            Backend::S3(_) => ImageStoreKind::S3,
        }
    }

    /// Keeps the image, unless something is kept there already. Returns what is there afterwards; `None`: nothing that
    /// is an image.
    pub async fn keep(
        &self,
        key: &StorageKey,
        image: GeneratedImage,
    ) -> Result<Option<GeneratedImage>, ImageStoreError> {
        let kept = match &self.0 {
            Backend::Directory(directory) => directory.create(key, &image.bytes).await?,
            Backend::S3(s3) => s3.create(key, &image).await?,
        };
        if kept {
            return Ok(Some(image));
        }
        Ok(self.read(key).await?.and_then(GeneratedImage::recognise))
    }

    /// What is kept there.
    pub async fn read(&self, key: &StorageKey) -> Result<Option<Vec<u8>>, ImageStoreError> {
        match &self.0 {
            Backend::Directory(directory) => directory.read(key).await,
            Backend::S3(s3) => s3.read(key).await,
        }
    }

    /// Removes what is there; if nothing is, that is as good.
    pub async fn remove(&self, key: &StorageKey) -> Result<(), ImageStoreError> {
        match &self.0 {
            Backend::Directory(directory) => directory.remove(key).await,
            Backend::S3(s3) => s3.remove(key).await,
        }
    }
}
