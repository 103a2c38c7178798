//! Runs a command with a PostgreSQL of its own; see [`tollgate_devdb::wrapper`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tollgate_devdb::wrapper::main(std::env::args_os().skip(1))
}
