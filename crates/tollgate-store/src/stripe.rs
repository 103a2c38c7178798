//! Stripe: the platform's inbox, and the accounts' books.

mod book;
mod inbox;

pub use book::{
    StoredGrant, StoredReversal, add_customer, add_event, add_grant, add_payments, grant_of, join_reversal,
    lock_balance, purchases_of, reversals_of, set_taken_back,
};
pub use inbox::{
    NamedEvent, NewEvent, StoredEvent, adopt, enter_event, inbox_page, link, linked, mark_event, named_event,
    remove_events, resolve_event, stripe_event, tell, wait_for,
};
