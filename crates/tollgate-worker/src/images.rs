//! An image's way out of an answer. Where images are kept outside of the database, their bytes go there before the job is
//! settled, never after: a row never names what is not there.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tollgate_domain::images::NewImage;
use tollgate_model::account::AccountId;
use tollgate_model::generation::{
    Decision, Endpoint, FailureKind, GenerationOutput, GenerationRequest, ProviderFailure,
};
use tollgate_model::image::{ContentKey, GeneratedImage, StorageKey};
use tollgate_outbound::ImageStore;

/// Between the tries to keep an image that was paid for. After the last one its job is tried again, or fails.
const PAUSES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];

/// Where images are kept.
#[derive(Debug, Clone, Default)]
pub struct Images(Option<Arc<ImageStore>>);

impl Images {
    /// In this store; in the database, if there is none.
    pub fn new(outside: Option<Arc<ImageStore>>) -> Self {
        Self(outside)
    }

    /// Takes the image out of an answer and keeps its bytes, or leaves them to the settlement. `None`: a text job's.
    pub(crate) async fn keep(
        &self,
        account: AccountId,
        request: &GenerationRequest,
        output: &mut GenerationOutput,
    ) -> Result<Option<NewImage>, ProviderFailure> {
        let Some(image) = output.image.take() else {
            return if request.endpoint == Endpoint::Images { Err(no_image()) } else { Ok(None) };
        };
        let new = match &self.0 {
            None => NewImage::inside(request, image),
            Some(store) => {
                let key = StorageKey::of(account, &ContentKey::of(request));
                let kept = keep(store, &key, image).await?;
                NewImage::outside(request, &kept, store.kind().as_str(), key)
            }
        };
        new.map(Some).map_err(|_| no_image())
    }

    /// Removes what no row names any more. What cannot be removed stays, and is named in the log.
    pub(crate) async fn remove(&self, objects: Vec<(String, StorageKey)>) {
        for (kind, key) in objects {
            let removed = match &self.0 {
                Some(store) if store.kind().as_str() == kind => store.remove(&key).await,
                _ => {
                    tracing::warn!(%kind, %key, "an image's bytes stay: they are in a store that is not configured");
                    continue;
                }
            };
            if let Err(error) = removed {
                tracing::warn!(%error, %key, "an image's bytes stay");
            }
        }
    }
}

async fn keep(
    store: &ImageStore,
    key: &StorageKey,
    image: GeneratedImage,
) -> Result<GeneratedImage, ProviderFailure> {
    let mut pauses = PAUSES.into_iter();
    loop {
        let problem = match store.keep(key, image.clone()).await {
            Ok(Some(kept)) => return Ok(kept),
            Ok(None) => format!("{key} in the image store is no image"),
            Err(error) => error.to_string(),
        };
        tracing::warn!(%problem, "an image could not be kept");
        let Some(pause) = pauses.next() else { break };
        sleep(pause).await;
    }
    Err(ProviderFailure::ours(Decision::Retry, "the image was there, but could not be stored"))
}

fn no_image() -> ProviderFailure {
    ProviderFailure {
        kind: FailureKind::NoImageUrl,
        ..ProviderFailure::ours(Decision::Fail, "the provider's answer holds no image")
    }
}
