//! Images: their rows, and the bytes of those that are kept in the database.

use chrono::{DateTime, Utc};
use tollgate_model::image::{ContentKey, Image, ImageUrl, MediaType, StorageKey};
use uuid::Uuid;

use crate::{Result, TenantTx};

/// An image that a job has brought.
#[derive(Debug, Clone)]
pub struct NewImage<'a> {
    /// The id it gets, if it is a new one.
    pub id: Uuid,
    /// The job.
    pub job: Uuid,
    /// What makes it this image and no other.
    pub content_key: ContentKey,
    /// SHA-256 of the prompt.
    pub prompt_hash: [u8; 32],
    /// The seed, if one was asked for.
    pub seed: Option<i64>,
    /// The model that was asked.
    pub model: &'a str,
    /// The size that was asked for.
    pub size: &'a str,
    /// Where it is served.
    pub url: &'a ImageUrl,
    /// What the bytes are.
    pub media_type: MediaType,
    /// How many.
    pub byte_length: i64,
    /// Their SHA-256.
    pub sha256: [u8; 32],
    /// Where they are.
    pub place: NewPlace<'a>,
}

/// Where a new image's bytes are.
#[derive(Debug, Clone, Copy)]
pub enum NewPlace<'a> {
    /// Here: they are to be stored with the row.
    Database(&'a [u8]),
    /// In a store of this kind, under this name.
    Outside(&'a str, &'a StorageKey),
}

/// Where a stored image's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the database.
    Database,
    /// In a store of this kind, under this name.
    Outside(String, StorageKey),
}

impl Place {
    fn read(storage: String, key: Option<&str>) -> Self {
        // Only what this crate has written is read, and no name of it is bad.
        key.and_then(StorageKey::parse).map_or(Self::Database, |key| Self::Outside(storage, key))
    }
}

/// The image is the job's from here on: this one, or the one of the same content that is there already.
///
/// A conflict locks the row that is there, so that it cannot be removed as nobody's before the job is written beside it.
pub async fn insert_image(tx: &mut TenantTx, image: &NewImage<'_>) -> Result<()> {
    let account = tx.account().0;
    let (storage, storage_key, data) = match image.place {
        NewPlace::Database(bytes) => ("database", None, Some(bytes)),
        NewPlace::Outside(kind, key) => (kind, Some(key.as_str()), None),
    };
    let id = sqlx::query_scalar!(
        "INSERT INTO app.images AS i (account_id, id, job_id, content_key, prompt_hash, seed, model, size, url, media_type,
                                      byte_length, sha256, storage, storage_key)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (account_id, content_key) WHERE content_key IS NOT NULL DO UPDATE SET content_key = i.content_key
         RETURNING i.id",
        account,
        image.id,
        image.job,
        image.content_key.as_bytes(),
        &image.prompt_hash,
        image.seed,
        image.model,
        image.size,
        image.url.as_str(),
        image.media_type.as_str(),
        image.byte_length,
        &image.sha256,
        storage,
        storage_key,
    )
    .fetch_one(tx.conn())
    .await?;
    if let (true, Some(data)) = (id == image.id, data) {
        sqlx::query!(
            "INSERT INTO app.image_data (account_id, image_id, data) VALUES ($1, $2, $3)",
            account,
            id,
            data
        )
        .execute(tx.conn())
        .await?;
    }
    sqlx::query!(
        "INSERT INTO app.job_images (account_id, job_id, image_id) VALUES ($1, $2, $3)",
        account,
        image.job,
        id
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The account's images, newest first: those older than `before`.
pub async fn images_page(tx: &mut TenantTx, before: Option<Uuid>, limit: i64) -> Result<Vec<Image>> {
    sqlx::query!(
        "SELECT id, job_id, url, media_type, byte_length, model, size, created_at FROM app.images
         WHERE account_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
        tx.account().0,
        before.unwrap_or(Uuid::max()),
        limit,
    )
    .map(|row| Image {
        id: row.id,
        job_id: row.job_id,
        url: row.url,
        media_type: media_type(&row.media_type),
        bytes: row.byte_length,
        model: row.model,
        size: row.size,
        created_at: row.created_at,
    })
    .fetch_all(tx.conn())
    .await
}

/// What is needed to serve an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// What the bytes are.
    pub media_type: MediaType,
    /// Their SHA-256.
    pub sha256: Vec<u8>,
    /// Where they are.
    pub place: Place,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
}

/// One image; `None`: the account has no such image.
pub async fn image_by_id(tx: &mut TenantTx, id: Uuid) -> Result<Option<StoredImage>> {
    sqlx::query!(
        "SELECT media_type, sha256, storage, storage_key, created_at FROM app.images WHERE account_id = $1 AND id = $2",
        tx.account().0,
        id,
    )
    .map(|row| StoredImage {
        media_type: media_type(&row.media_type),
        sha256: row.sha256,
        place: Place::read(row.storage, row.storage_key.as_deref()),
        created_at: row.created_at,
    })
    .fetch_optional(tx.conn())
    .await
}

/// The bytes of an image that is kept in the database.
pub async fn image_data(tx: &mut TenantTx, id: Uuid) -> Result<Option<Vec<u8>>> {
    let data = sqlx::query_scalar!(
        "SELECT data FROM app.image_data WHERE account_id = $1 AND image_id = $2",
        tx.account().0,
        id,
    );
    data.fetch_optional(tx.conn()).await
}

/// The column's CHECK allows no other word.
pub(crate) fn media_type(word: &str) -> MediaType {
    MediaType::parse(word).unwrap_or(MediaType::Png)
}

/// Of these images, locks those that nobody is about to give to another job.
pub async fn lock_images(tx: &mut TenantTx, ids: &[Uuid]) -> Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        r#"SELECT locked.id AS "id!" FROM unnest($2::uuid[]) AS wanted (id),
                LATERAL (SELECT i.id FROM app.images i WHERE i.account_id = $1 AND i.id = wanted.id LIMIT 1
                         FOR UPDATE SKIP LOCKED) AS locked"#,
        tx.account().0,
        ids,
    )
    .fetch_all(tx.conn())
    .await
}

/// Removes those of these images that no job has any more, and returns where the bytes of those are that are kept elsewhere.
/// They must have been locked in a statement before: then what this one sees is how it is.
pub async fn remove_unused_images(tx: &mut TenantTx, locked: &[Uuid]) -> Result<Vec<(String, StorageKey)>> {
    let gone = sqlx::query!(
        r#"WITH unused AS MATERIALIZED (
               SELECT wanted.id FROM unnest($2::uuid[]) AS wanted (id)
               LEFT JOIN LATERAL (SELECT l.job_id FROM app.job_images l
                                  WHERE l.account_id = $1 AND l.image_id = wanted.id LIMIT 1) AS used ON true
               WHERE used.job_id IS NULL
           ), data AS (
               DELETE FROM app.image_data WHERE ctid = ANY (ARRAY(
                   SELECT own.row FROM unused, LATERAL (SELECT d.ctid AS row FROM app.image_data d
                                                        WHERE d.account_id = $1 AND d.image_id = unused.id OFFSET 0) AS own))
           )
           DELETE FROM app.images WHERE ctid = ANY (ARRAY(
               SELECT own.row FROM unused, LATERAL (SELECT i.ctid AS row FROM app.images i
                                                    WHERE i.account_id = $1 AND i.id = unused.id OFFSET 0) AS own))
           RETURNING storage, storage_key"#,
        tx.account().0,
        locked,
    )
    .fetch_all(tx.conn())
    .await?;
    let outside = gone.into_iter().filter_map(|row| {
        let key = StorageKey::parse(row.storage_key.as_deref()?)?;
        Some((row.storage, key))
    });
    Ok(outside.collect())
}
