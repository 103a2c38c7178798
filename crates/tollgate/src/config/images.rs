//! What is set for images: where they are kept, and where they are shown.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use tollgate_outbound::{ImageStore, S3Config};

use super::{Config, ConfigError};
use crate::output::Failure;

/// Where images are kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum ImageStorage {
    /// In the database.
    Database,
    /// In files.
    Directory(PathBuf),
    /// In objects.
    S3 { bucket: String, prefix: String },
}

impl TryFrom<String> for ImageStorage {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "database" {
            return Ok(Self::Database);
        }
        if let Some(path) = text.strip_prefix("directory:").map(PathBuf::from) {
            // A relative one would be another directory wherever the command is run.
            return if path.is_absolute() {
                Ok(Self::Directory(path))
            } else {
                Err(format!(
                    "`{text}` does not hold an absolute path, such as directory:/var/lib/tollgate/images"
                ))
            };
        }
        let (bucket, prefix) = match text.strip_prefix("s3://") {
            Some(name) => name.split_once('/').unwrap_or((name, "")),
            None => ("", ""),
        };
        if bucket.is_empty() {
            return Err(format!("`{text}` is none of database, directory:/path and s3://bucket/prefix"));
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl Config {
    pub(super) fn check_images(&self) -> Result<(), ConfigError> {
        let keys = [
            ("aws_access_key_id", self.aws_access_key_id.is_some()),
            ("aws_secret_access_key", self.aws_secret_access_key.is_some()),
        ];
        for (name, given) in keys {
            if !given && matches!(self.image_storage, ImageStorage::S3 { .. }) {
                return Err(ConfigError(format!("`image_storage` is a bucket, but `{name}` is not set")));
            }
        }
        if let Some(url) = &self.public_url {
            let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
            if !matches!(url.scheme(), "http" | "https") || !plain {
                return Err(ConfigError(
                    "`public_url` must be where the API is reached, such as https://ai.example.com".into(),
                ));
            }
        }
        Ok(())
    }

    /// The store of images beside the database, if they are not kept in it.
    pub(crate) fn image_store(&self) -> Result<Option<Arc<ImageStore>>, Failure> {
        let store = match &self.image_storage {
            ImageStorage::Database => return Ok(None),
            ImageStorage::Directory(path) => ImageStore::directory(path.clone())
                .map_err(|error| Failure::new(format!("IMAGE_STORAGE: {error}")))?,
            ImageStorage::S3 { bucket, prefix } => ImageStore::s3(S3Config {
                endpoint: self.aws_endpoint_url.clone(),
                region: self.aws_region.clone(),
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                key_id: self.aws_access_key_id.clone().unwrap_or_default(),
                secret: self.aws_secret_access_key.clone().unwrap_or_default(),
                session_token: self.aws_session_token.clone(),
                max_bytes: self.image_max_bytes,
            })?,
        };
        Ok(Some(Arc::new(store)))
    }

    /// What the path of an image is put behind in answers; empty: nothing.
    pub(crate) fn public_base(&self) -> String {
        self.public_url.as_ref().map_or_else(String::new, |url| url.as_str().trim_end_matches('/').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(environment: &[(&str, &str)]) -> Result<Config, String> {
        let variable = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Config::read(None, variable).map_err(|error| error.to_string())
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "hidden")];

    #[test]
    fn images_are_kept_where_they_are_told_to() {
        let s3 =
            |bucket: &str, prefix: &str| ImageStorage::S3 { bucket: bucket.into(), prefix: prefix.into() };
        for (text, expected) in [
            ("database", ImageStorage::Database),
            ("directory:/srv/images", ImageStorage::Directory("/srv/images".into())),
            ("s3://b", s3("b", "")),
            ("s3://b/a/c", s3("b", "a/c")),
        ] {
            let config = read(&[&KEYS[..], &[("IMAGE_STORAGE", text)]].concat()).unwrap();
            assert_eq!(config.image_storage, expected, "{text}");
        }
        assert_eq!(read(&[]).unwrap().image_storage, ImageStorage::Database);
    }

    #[test]
    fn mistakes_are_named() {
        for (environment, named) in [
            (&[("IMAGE_STORAGE", "here")][..], "`here` is none of"),
            (&[("IMAGE_STORAGE", "directory:images")], "absolute"),
            (&[("IMAGE_STORAGE", "s3://")], "s3://bucket/prefix"),
            (&[("IMAGE_STORAGE", "s3://b")], "aws_access_key_id"),
            (&[("IMAGE_STORAGE", "s3://b"), KEYS[0]], "aws_secret_access_key"),
            (&[("IMAGE_MAX_BYTES", "0")], "image_max_bytes"),
            (&[("IMAGE_TIMEOUT_MS", "1")], "image_timeout_ms"),
            (&[("PUBLIC_URL", "ftp://h.example")], "public_url"),
            (&[("PUBLIC_URL", "https://h.example/?x=1")], "public_url"),
        ] {
            let error = read(environment).unwrap_err();
            assert!(error.contains(named), "{environment:?}: {error}");
            assert!(!error.contains("hidden"), "{error}");
        }
    }

    #[test]
    fn a_public_url_is_put_before_paths() {
        for (text, base) in
            [("https://h.example", "https://h.example"), ("https://h.example/ai/", "https://h.example/ai")]
        {
            assert_eq!(read(&[("PUBLIC_URL", text)]).unwrap().public_base(), base);
        }
        assert_eq!(read(&[]).unwrap().public_base(), "");
    }
}
