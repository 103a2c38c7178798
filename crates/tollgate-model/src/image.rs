//! Images: how their bytes are recognised, where they are served, and what makes two of them the same (SPEC I1, I2, I4).

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::account::AccountId;
use crate::generation::GenerationRequest;

/// The size of an image job that names none.
pub const DEFAULT_SIZE: &str = "1024x1024";

/// Whether this is a size: `WIDTHxHEIGHT` in pixels, or `auto`. Which of them a model paints, its provider knows.
pub fn is_size(text: &str) -> bool {
    let side = |digits: &str| {
        digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0')
    };
    let sides = text.split_once('x');
    text == "auto" || sides.is_some_and(|(w, h)| !w.is_empty() && !h.is_empty() && side(w) && side(h))
}

/// What an image is encoded as. Nothing else is an image here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MediaType {
    /// `image/png`
    #[serde(rename = "image/png")]
    Png,
    /// `image/jpeg`
    #[serde(rename = "image/jpeg")]
    Jpeg,
    /// `image/webp`
    #[serde(rename = "image/webp")]
    Webp,
}

impl MediaType {
    /// Every media type.
    pub const ALL: [Self; 3] = [Self::Png, Self::Jpeg, Self::Webp];

    /// As in `Content-Type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }

    /// Reads what [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }

    /// What these bytes are, by how they begin; what a provider says of them does not count.
    pub fn sniff(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::Webp),
            _ => None,
        }
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An image as it came from a provider.
#[derive(Clone, PartialEq, Eq)]
pub struct GeneratedImage {
    /// What the bytes are.
    pub media_type: MediaType,
    /// The whole file.
    pub bytes: Vec<u8>,
}

/// Without the bytes, of which a log wants to know no more than how many they are.
impl fmt::Debug for GeneratedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.media_type, self.bytes.len())
    }
}

impl GeneratedImage {
    /// These bytes, if they are an image.
    pub fn recognise(bytes: Vec<u8>) -> Option<Self> {
        MediaType::sniff(&bytes).map(|media_type| Self { media_type, bytes })
    }
}

/// An account's image, as its tenant sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// UUIDv7: sorts by age.
    pub id: Uuid,
    /// The job that brought it first; it may have been removed since.
    pub job_id: Uuid,
    /// Where Tollgate serves it: a path of this API, or a whole URL where the installation has one set.
    pub url: String,
    /// What it is encoded as.
    pub media_type: MediaType,
    /// Its length.
    pub bytes: i64,
    /// The model that was asked for it.
    pub model: String,
    /// The size that was asked for.
    pub size: String,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
}

/// An image without a URL, which nothing could show. The database would refuse it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an image must have a URL")]
pub struct NoImageUrl;

/// The URL of a stored image: never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUrl(String);

impl ImageUrl {
    /// Takes a URL that says something.
    pub fn new(url: impl Into<String>) -> Result<Self, NoImageUrl> {
        let url = url.into();
        if url.trim().is_empty() { Err(NoImageUrl) } else { Ok(Self(url)) }
    }

    /// Where Tollgate itself serves an image, from the root of its API.
    pub fn own(id: Uuid) -> Result<Self, NoImageUrl> {
        Self::new(format!("/v1/images/{id}/content"))
    }

    /// The URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// What an image is the image of. One account has at most one image of a key, however often its jobs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentKey([u8; 32]);

impl ContentKey {
    /// The key of what a request asks for: SHA-256 over the prompt's hash, seed, model and size, and what the job type
    /// declares beside them, which changes the picture as well.
    ///
    /// Without a seed nobody has asked for the same picture twice, so the job's id stands in its place: two jobs of one
    /// prompt have two images, and one job, run again, has one.
    pub fn of(request: &GenerationRequest) -> Self {
        let mut hash = Sha256::new_with_prefix(sha256(request.prompt().as_bytes()));
        match request.seed {
            Some(seed) => hash.update([&[1], &seed.to_be_bytes()[..]].concat()),
            None => hash.update([&[0], &request.request_id.as_bytes()[..]].concat()),
        }
        let size = request.size.as_deref().unwrap_or_default();
        let params = if request.params.is_empty() {
            String::new()
        } else {
            serde_json::to_string(&request.params).unwrap_or_default()
        };
        for text in [&request.model, size, &params] {
            // Their lengths too, so that no two lists of texts are one text.
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        Self(hash.finalize().into())
    }

    /// As it is stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// In hexadecimal: as a name that any store takes.
impl fmt::Display for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The name of an image in a store outside of the database: the account's id and the image's [`ContentKey`].
///
/// The account is a part of it: an image that two accounts ask for is kept twice, since neither may learn of the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageKey(String);

impl StorageKey {
    /// The name of this account's image.
    pub fn of(account: AccountId, content: &ContentKey) -> Self {
        Self(format!("{account}/{content}"))
    }

    /// Reads a stored name. It becomes a path, so it is two plain names or it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let (account, content) = text.split_once('/')?;
        (plain(account) && plain(content)).then(|| Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
