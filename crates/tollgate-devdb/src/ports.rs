//! Choosing a port.
//!
//! Not by binding port 0: that gives one of the range from which the kernel also takes the local ports of
//! outgoing connections. While the server restarts, a client that dials such a port again and again will
//! one day be given that very port as its own, connect to itself, and keep the server from binding it.

use std::{io, net::Ipv4Addr, net::TcpListener, ops::Range};

use crate::{error::Error, random};

/// Below the ranges for outgoing connections of Linux (from 32768) and of macOS (from 49152), and above
/// the ports that servers like to have.
const RANGE: Range<u16> = 20_000..32_000;

/// Whether nobody has the port on 127.0.0.1 at this moment.
pub(crate) fn is_free(port: u16) -> bool {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => true,
        Err(cause) => cause.kind() != io::ErrorKind::AddrInUse,
    }
}

/// A port at random; whether it is free is another question.
pub(crate) fn random() -> Result<u16, Error> {
    let number = u16::from_ne_bytes(random::bytes()?);
    Ok(RANGE.start + number % (RANGE.end - RANGE.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_in_the_range_and_a_bound_one_is_not_free() {
        for _ in 0..100 {
            assert!(RANGE.contains(&random().unwrap()));
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!is_free(port));
        drop(listener);
        assert!(is_free(port));
    }
}
