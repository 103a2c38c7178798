//! Images: what a job's answer becomes, and how its tenant reads it.

use tollgate_model::account::AccountId;
use tollgate_model::generation::GenerationRequest;
use tollgate_model::image::{
    self, ContentKey, GeneratedImage, Image, ImageUrl, MediaType, NoImageUrl, StorageKey,
};
use tollgate_store as store;
use tollgate_store::TenantTx;
use uuid::Uuid;

use crate::ids::new_id;
use crate::{Database, Error, Result};

pub use tollgate_store::{Place, StoredImage};

/// An image on its way from a job's answer to the database, ready to be settled.
#[derive(Debug, Clone)]
pub struct NewImage {
    id: Uuid,
    url: ImageUrl,
    content_key: ContentKey,
    prompt_hash: [u8; 32],
    seed: Option<i64>,
    model: String,
    size: String,
    media_type: MediaType,
    byte_length: i64,
    sha256: [u8; 32],
    place: NewPlace,
}

#[derive(Debug, Clone)]
enum NewPlace {
    Database(Vec<u8>),
    Outside(&'static str, StorageKey),
}

impl NewImage {
    /// What a request's answer brought, to be kept in the database.
    pub fn inside(request: &GenerationRequest, image: GeneratedImage) -> Result<Self, NoImageUrl> {
        let (media_type, byte_length, sha256) = facts(&image);
        let place = NewPlace::Database(image.bytes);
        Self::new(request, (media_type, byte_length, sha256), place)
    }

    /// What a request's answer brought, and a store of this kind keeps under this name.
    pub fn outside(
        request: &GenerationRequest,
        image: &GeneratedImage,
        kind: &'static str,
        key: StorageKey,
    ) -> Result<Self, NoImageUrl> {
        Self::new(request, facts(image), NewPlace::Outside(kind, key))
    }

    fn new(
        request: &GenerationRequest,
        (media_type, byte_length, sha256): (MediaType, i64, [u8; 32]),
        place: NewPlace,
    ) -> Result<Self, NoImageUrl> {
        let id = new_id();
        Ok(Self {
            id,
            url: ImageUrl::own(id)?,
            content_key: ContentKey::of(request),
            prompt_hash: image::sha256(request.prompt().as_bytes()),
            seed: request.seed,
            model: request.model.clone(),
            size: request.size.clone().unwrap_or_default(),
            media_type,
            byte_length,
            sha256,
            place,
        })
    }

    /// Stores it as the job's, in the transaction that settles the job.
    pub(crate) async fn insert(&self, tx: &mut TenantTx, job: Uuid) -> Result<()> {
        let place = match &self.place {
            NewPlace::Database(bytes) => store::NewPlace::Database(bytes),
            NewPlace::Outside(kind, key) => store::NewPlace::Outside(kind, key),
        };
        let image = store::NewImage {
            id: self.id,
            job,
            content_key: self.content_key,
            prompt_hash: self.prompt_hash,
            seed: self.seed,
            model: &self.model,
            size: &self.size,
            url: &self.url,
            media_type: self.media_type,
            byte_length: self.byte_length,
            sha256: self.sha256,
            place,
        };
        Ok(store::insert_image(tx, &image).await?)
    }
}

fn facts(image: &GeneratedImage) -> (MediaType, i64, [u8; 32]) {
    let byte_length = i64::try_from(image.bytes.len()).unwrap_or(i64::MAX);
    (image.media_type, byte_length, image::sha256(&image.bytes))
}

/// The account's images, newest first: those older than `before`.
pub async fn list(db: &Database, account: AccountId, before: Option<Uuid>, limit: i64) -> Result<Vec<Image>> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let images = store::images_page(&mut tx, before, limit).await?;
    tx.commit().await?;
    Ok(images)
}

/// What is needed to serve one image, but for its bytes.
pub async fn get(db: &Database, account: AccountId, id: Uuid) -> Result<StoredImage> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let image = store::image_by_id(&mut tx, id).await?;
    tx.commit().await?;
    image.ok_or(NOT_FOUND)
}

/// The bytes of an image that is kept in the database.
pub async fn data(db: &Database, account: AccountId, id: Uuid) -> Result<Vec<u8>> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let data = store::image_data(&mut tx, id).await?;
    tx.commit().await?;
    data.ok_or(NOT_FOUND)
}

const NOT_FOUND: Error = Error::NotFound("image");

/// Images whose rows one statement removes: megabytes each, in thousands of rows beside the table.
const BATCH: usize = 50;

/// Removes those of these images that no job has any more. Returns where the bytes of those are that are kept elsewhere.
pub(crate) async fn remove_unused(tx: &mut TenantTx, images: &[Uuid]) -> Result<Vec<(String, StorageKey)>> {
    let mut outside = Vec::new();
    for images in images.chunks(BATCH) {
        let locked = store::lock_images(tx, images).await?;
        outside.extend(store::remove_unused_images(tx, &locked).await?);
    }
    Ok(outside)
}
