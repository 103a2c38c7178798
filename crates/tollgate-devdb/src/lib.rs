//! A private PostgreSQL for development and tests.
//!
//! `tollgate dev`, `tollgate demo` and the tests need a real PostgreSQL, and asking a newcomer to set one
//! up is a chore that Tollgate can do itself: every machine that can have PostgreSQL's server package
//! has all the parts. This crate finds the server binaries, makes a cluster beneath a data directory,
//! and supervises the server until the [`Server`] is dropped. Crates that bundle or download a server
//! were tried and rejected: they need their download host, or give one WASM connection.
//!
//! What is in a data directory:
//!
//! | File                | What                                                                     |
//! |---------------------|--------------------------------------------------------------------------|
//! | `postgres/`         | the cluster (PGDATA), owned by the user that the server runs as          |
//! | `postgres.cluster`  | instead of `postgres/`: the id of a cluster in `/var/lib/tollgate`       |
//! | `postgres.lock`     | held by `flock` while a [`Server`] lives; holds its pid                  |
//! | `postgres.log`      | what the server says, and what the supervisor did                        |
//! | `postgres.password` | the password of the cluster's owner, `tollgate`                          |
//! | `postgres.port`     | the port of the last start, taken again if it is free                    |
//!
//! How it keeps its promises:
//!
//! * **One owner.** The lock is taken before anything is looked at, so whatever server is found running
//!   on the cluster afterwards is a stray that outlived its supervisor, and may be stopped.
//! * **Dies with us.** The server has `PR_SET_PDEATHSIG` (on Linux), so `kill -9` of the caller takes it
//!   along; where that fails, the next start finds the stray.
//! * **Not hit by Ctrl-C.** It runs in a session of its own: the terminal's Ctrl-C reaches the caller
//!   only, which can drain before it stops its database.
//! * **Runs as root too.** PostgreSQL refuses to run as root, so it runs as `postgres` or `nobody`. If
//!   that user cannot reach the data directory, the cluster goes to `/var/lib/tollgate/clusters`. A data
//!   directory that is *moved* while its cluster is there keeps it only if it is started before another
//!   data directory is, whose start collects clusters that nobody points at.
//! * **TCP only**, on 127.0.0.1: a socket's path has 107 bytes at most, and temporary directories do not
//!   care. The password is what keeps other local users out.
//!
//! The API blocks. It knows no runtime, so that a test harness can use it before there is one.

mod clock;
mod error;
mod find;
mod initdb;
mod launch;
mod layout;
mod lock;
mod log;
mod pidfile;
mod ports;
mod privileges;
mod random;
mod relocate;
mod scratch;
mod server;
mod strays;
mod supervisor;
mod sys;
pub mod wrapper;

pub use error::{Error, Rejected};
pub use find::{Binaries, find_binaries};
pub use server::{Options, Server};
pub use sys::{Session, die_with_parent};
