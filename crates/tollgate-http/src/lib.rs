//! The HTTP API: routes, extractors, problem documents.
//!
//! [`api_router`] is the API role's, [`ops_router`] the three operational routes a worker shows as well, [`serve()`]
//! the server under either. The URL table is `router.rs`; one endpoint is one file under `endpoints/`. A handler
//! reads its arguments, calls one function of the domain, and answers; whatever goes wrong on the way is a
//! [`problem::Problem`], and the outermost layer (`observe.rs`) writes it down with the request's id.
//!
//! **Architecture invariant:** nothing here sees a transaction, and nothing here calls out.

mod answer;
mod api;
mod available;
pub mod client;
mod clock;
mod cors;
mod endpoints;
mod etag;
mod extract;
mod observe;
mod openapi;
mod page;
pub mod problem;
mod request_id;
mod router;
mod serve;
mod streams;
mod table;
mod transport;

pub use api::{Api, Operators};
pub use client::TrustedProxies;
pub use cors::AllowedOrigins;
pub use openapi::openapi_json;
pub use router::{api_router, ops_router};
pub use serve::{Tls, TlsError, serve};
pub use transport::Transport;
