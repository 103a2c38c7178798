//! `with-postgres`: runs a command with a PostgreSQL of its own.

use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Child, Command, ExitCode, ExitStatus},
    thread,
    time::Duration,
};

use crate::{
    Error, Options, Server,
    error::IoContext as _,
    sys::{self, Session},
};

const USAGE: &str = "\
Runs a command with a PostgreSQL of its own, whose URL is in DATABASE_URL.

Usage: with-postgres [--data-dir DIR] [--set NAME=VALUE]... -- COMMAND [ARGUMENT]...

  --data-dir DIR    keep the cluster in DIR; without it, a new one is removed afterwards
  --set NAME=VALUE  a setting of PostgreSQL, such as shared_buffers=1GB
  -h, --help        print this

The exit code is the command's. PGBIN names the bin directory of the PostgreSQL to use.";

/// The exit code for what is our failure, not the command's.
const FAILED: u8 = 125;
/// The exit code for a command that cannot be run, as shells have it.
const CANNOT_RUN: u8 = 127;
const POLL: Duration = Duration::from_millis(10);

/// The program, without its `main`. It takes over the process's signal handlers.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let invocation = match parse(arguments) {
        Ok(Some(invocation)) => invocation,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(fault) => {
            eprintln!("with-postgres: {fault}\n\n{USAGE}");
            return ExitCode::from(FAILED);
        }
    };
    run(invocation).unwrap_or_else(|error| {
        eprintln!("with-postgres: {error}");
        ExitCode::from(FAILED)
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Invocation {
    data_dir: Option<PathBuf>,
    settings: Vec<(String, String)>,
    program: OsString,
    arguments: Vec<OsString>,
}

/// What is asked for; `None` if it is help.
fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Invocation>, String> {
    let mut arguments = arguments.into_iter();
    let mut data_dir = None;
    let mut settings = Vec::new();
    loop {
        match arguments.next() {
            None => return Err("no command is given".to_owned()),
            Some(option) if option == "-h" || option == "--help" => return Ok(None),
            Some(option) if option == "--data-dir" => {
                data_dir = Some(arguments.next().ok_or("--data-dir needs a directory")?.into());
            }
            Some(option) if option == "--set" => {
                let setting = arguments.next().and_then(|setting| setting.into_string().ok());
                let pair = setting.as_deref().and_then(|setting| setting.split_once('='));
                let (name, value) = pair.ok_or("--set needs NAME=VALUE")?;
                settings.push((name.to_owned(), value.to_owned()));
            }
            Some(option) if option == "--" => break,
            Some(other) => return Err(format!("what is {}? The command goes after `--`", other.display())),
        }
    }
    let program = arguments.next().ok_or("no command is given")?;
    Ok(Some(Invocation { data_dir, settings, program, arguments: arguments.collect() }))
}

fn run(invocation: Invocation) -> Result<ExitCode, Error> {
    // From here on a signal ends the command, and then us in good order.
    sys::catch_signals().when("catch signals for", invocation.program.as_ref())?;
    let server = match invocation.data_dir {
        Some(data_dir) => Server::start(Options { settings: invocation.settings, ..Options::new(data_dir) })?,
        None => Server::start_scratch(invocation.settings)?,
    };
    let mut command = Command::new(&invocation.program);
    command.args(&invocation.arguments).env("DATABASE_URL", server.url("postgres"));
    // It shares our terminal, and if we are killed it has no database any more.
    sys::die_with_parent(&mut command, libc::SIGTERM, Session::Shared);
    let code = match sys::caught_signal() {
        Some(signal) => exit_code(ExitStatus::from_raw(signal.number)),
        None => match command.spawn() {
            Ok(child) => exit_code(wait(child).when("wait for", invocation.program.as_ref())?),
            Err(cause) => {
                eprintln!("with-postgres: cannot run {}: {cause}", invocation.program.display());
                CANNOT_RUN
            }
        },
    };
    server.stop()?;
    Ok(ExitCode::from(code))
}

/// Waits for the command, and passes on to it what was sent to us alone. Whether a signal ends it is the
/// command's decision: Ctrl-C in psql cancels a query.
fn wait(mut child: Child) -> std::io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if let Some(signal) = sys::caught_signal().filter(|signal| !signal.from_terminal) {
            // It has not been waited for, so its pid is still its own.
            let _ = sys::kill(child.id(), signal.number);
        }
        thread::sleep(POLL);
    }
}

/// As shells have it: the command's own code, or 128 and the number of the signal that ended it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(line: &str) -> Result<Option<Invocation>, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_command_goes_after_two_dashes() {
        let found = parse_words("--data-dir /d --set a=b=c -- psql --help -- x").unwrap().unwrap();
        assert_eq!(found.settings, [("a".to_owned(), "b=c".to_owned())]);
        assert_eq!(found.data_dir.unwrap(), PathBuf::from("/d"));
        assert_eq!((found.program.to_str().unwrap(), found.arguments.len()), ("psql", 3));
        assert_eq!(parse_words("--help"), Ok(None));
        for wrong in
            ["", "--", "--data-dir", "--data-dir /d", "psql", "--data-dir=/d -- psql", "--set a -- psql"]
        {
            assert!(parse_words(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(libc::SIGTERM)), 143);
    }
}
