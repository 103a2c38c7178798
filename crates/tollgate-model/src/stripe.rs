//! Stripe: whether an event is Stripe's ([`signature`]), what it says ([`reading`]), and what the events of an account come
//! to in credits ([`book`]).
//!
//! Stripe sends events late, more than once and in any order, and some never. So an event is read as a *fact* that stays
//! true, facts are joined so that order and repetition do not matter, and credits are a function of the facts alone.

pub mod book;
pub mod inbox;
pub mod rates;
pub mod reading;
pub mod signature;
