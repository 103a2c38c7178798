//! Making a cluster.
//!
//! initdb works in a directory of its own beside the cluster's place, and the finished cluster is renamed
//! into it: a kill at any moment leaves either a whole cluster or none.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use crate::{
    clock,
    error::{Error, IoContext as _},
    find::Binaries,
    layout::{self, Layout},
    privileges::Identity,
    random, strays,
    sys::{self, Session},
};

/// The cluster's owner, a superuser.
pub(crate) const OWNER: &str = "tollgate";

/// What its working directory is called; a random suffix follows.
const UNFINISHED: &str = "postgres.initdb.";

/// Makes the cluster of this layout. `durable` is whether it must survive a power cut from now on.
pub(crate) fn run(
    layout: &Layout,
    binaries: &Binaries,
    identity: &Identity,
    password: &str,
    durable: bool,
) -> Result<(), Error> {
    remove_unfinished(&layout.base)?;
    let workspace = layout.base.join(format!("{UNFINISHED}{}", random::hex::<4>()?));
    layout::create_dir(&workspace, 0o700)?;
    identity.give(&workspace)?;
    let outcome = make(&workspace, binaries, identity, password, durable)
        .and_then(|()| put_in_place(&workspace.join(layout::PGDATA), layout, durable));
    let cleaned = layout::remove_dir(&workspace);
    outcome.and(cleaned)
}

/// Removes a cluster, finished or not, and all that belongs to it but the lock.
pub(crate) fn undo(layout: &Layout) -> Result<(), Error> {
    strays::clear(&layout.pgdata())?;
    remove_unfinished(&layout.base)?;
    layout.remove()
}

/// Removes what interrupted runs left behind.
fn remove_unfinished(base: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(base).when("read", base)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            remove_while_used(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a directory in which an initdb that was killed, or its server, may still be making files: neither
/// shows before it has got going.
fn remove_while_used(workspace: &Path) -> Result<(), Error> {
    let mut outcome = Ok(());
    clock::wait_for(Duration::from_secs(5), || {
        strays::clear_unfinished(&workspace.join(layout::PGDATA));
        outcome = layout::remove_dir(workspace);
        outcome.is_ok().then_some(())
    });
    outcome
}

fn make(
    workspace: &Path,
    binaries: &Binaries,
    identity: &Identity,
    password: &str,
    durable: bool,
) -> Result<(), Error> {
    // Not through a pipe: as `/dev/stdin` it would have to be opened anew, and only we may open our own.
    let secret = workspace.join("password");
    let mut file =
        File::options().write(true).create_new(true).mode(0o600).open(&secret).when("create", &secret)?;
    writeln!(file, "{password}").when("write", &secret)?;
    identity.give(&secret)?;

    let program = binaries.initdb();
    let mut command = identity.command(&program);
    command.arg("--pgdata").arg(workspace.join(layout::PGDATA)).arg("--pwfile").arg(&secret);
    command.args(["--username", OWNER, "--encoding", "UTF8", "--locale", "C", "--no-instructions"]);
    command.args(["--auth-host", "scram-sha-256", "--auth-local", "scram-sha-256"]);
    if !durable {
        command.arg("--no-sync");
    }
    // Not into a pipe: if we are killed, what initdb runs would be killed by its next word, and leave shared
    // memory behind.
    let said = workspace.join("output");
    let output = File::create_new(&said).when("create", &said)?;
    command.stdout(output.try_clone().when("open", &said)?).stderr(output);
    // This thread waits for it, so it lives long enough.
    sys::die_with_parent(&mut command, libc::SIGKILL, Session::Own);
    let status = command.status().when("run", &program)?;
    if status.success() {
        return Ok(());
    }
    let output = fs::read(&said).when("read", &said)?;
    Err(Error::Initdb { status, output: String::from_utf8_lossy(&output).trim().to_owned() })
}

fn put_in_place(made: &Path, layout: &Layout, durable: bool) -> Result<(), Error> {
    let pgdata = layout.pgdata();
    fs::rename(made, &pgdata).when("create", &pgdata)?;
    if durable {
        // initdb has synced what it wrote; the cluster's new name is for us to sync.
        File::open(&layout.base).and_then(|dir| dir.sync_all()).when("sync", &layout.base)?;
    }
    Ok(())
}
