//! The prices in force: those of the configuration, and those that operators have set, looked for all the time.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use tollgate_model::audit::{Action, Actor};
use tollgate_model::pricing::{Expectation, Price, PriceList, Quote};
use tollgate_model::submission::{AcceptedJob, InvalidSubmission};
use tollgate_store as store;
use tollgate_store::{SystemTx, Tx as _};

use crate::{Database, Error, Result, audit};

/// From one look to the next: a price that is to hold from a moment on is set before it.
const LOOKS: Duration = Duration::from_secs(1);

/// Quotes jobs. One a process; clones are the same.
#[derive(Debug, Clone)]
pub struct Prices {
    provider: &'static str,
    configured: Vec<Price>,
    expected: Expectation,
    list: Arc<RwLock<Arc<PriceList>>>,
}

impl Prices {
    /// Those of the configuration, and those in the database; and the loop that looks for new ones, until it is dropped.
    pub async fn load(
        db: Database,
        provider: &'static str,
        configured: Vec<Price>,
        expected: Expectation,
    ) -> Result<(Self, impl Future<Output = ()> + Send)> {
        let prices = Self { provider, configured, expected, list: Arc::default() };
        prices.look(&db).await?;
        let follow = {
            let prices = prices.clone();
            async move {
                loop {
                    tokio::time::sleep(LOOKS).await;
                    db.back().await;
                    if let Err(error) = prices.look(&db).await {
                        tracing::debug!(%error, "could not look for new prices");
                    }
                }
            }
        };
        Ok((prices, follow))
    }

    async fn look(&self, db: &Database) -> Result<()> {
        let set = store::prices(db.pool()).await?;
        let list = PriceList::new(self.configured.iter().cloned().chain(set).collect());
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(list);
        Ok(())
    }

    /// The price of a job that is accepted now, and what is to be held for it.
    pub(crate) fn quote(&self, job: &AcceptedJob, now: DateTime<Utc>) -> Result<Quote> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner).clone();
        let model = &job.request.model;
        let rates = list.at(now, self.provider, model);
        let quote = rates.and_then(|rates| Quote::new(rates, &job.request, self.expected));
        quote.ok_or_else(|| {
            let problem = format!("`{model}` has no price for such a job, so it is not offered");
            Error::Submission(InvalidSubmission { field: "model", problem })
        })
    }
}

/// Every price that operators have set, oldest first.
pub async fn list(db: &Database) -> Result<Vec<Price>> {
    Ok(store::prices(db.pool()).await?)
}

/// Sets a price, from now on if it says nothing else: one that held since ever would be older than those it is to replace. It
/// cannot be taken back; a later one that is alike holds instead.
pub async fn set(db: &Database, actor: Actor, mut price: Price) -> Result<Price> {
    let mut tx = SystemTx::begin(db.pool()).await?;
    if price.from.is_none() {
        price.from = Some(tx.now().await?);
    }
    price.check().map_err(|error| Error::Invalid { field: "price", problem: error.to_string() })?;
    store::insert_price(&mut tx, &price).await?;
    let object = format!("price:{}/{}", price.provider, price.model.as_deref().unwrap_or("*"));
    audit::record_for_all(&mut tx, actor, Action::PriceSet, &object, &json!(price)).await?;
    tx.commit().await?;
    Ok(price)
}
