//! Who is at the other end of a connection.

use std::net::IpAddr;

/// The address that a request came from; an extension of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientAddress(pub(crate) IpAddr);
