//! The user that the server runs as.
//!
//! PostgreSQL refuses to run as root, and `tollgate dev` is run as root often enough: in containers, in CI,
//! on a rented machine. So root hands the server, and all that touches the cluster, to another user.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{MetadataExt as _, chown},
        process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    error::{Error, IoContext as _},
    sys,
};

/// What a server or a tool of PostgreSQL inherits of our environment. Not more: the rest holds `PG*`
/// variables that would change its mind, and secrets, such as API keys, that are none of its business.
const INHERITED: [&str; 5] =
    ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "LOCPATH"];

/// Who runs the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Whoever we are.
    Ourselves,
    /// Another user, because we are root.
    Other { name: String, uid: u32, gid: u32 },
}

impl Identity {
    /// The user for a new cluster.
    pub(crate) fn for_new_cluster() -> Result<Identity, Error> {
        if sys::effective_uid() != 0 {
            return Ok(Identity::Ourselves);
        }
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        ["postgres", "nobody"].iter().find_map(|name| find_user(&users, name)).ok_or(Error::NoServerUser)
    }

    /// The user for a cluster that exists: always its owner, so that root may serve what an ordinary user
    /// made without taking it away from them.
    pub(crate) fn for_cluster(pgdata: &Path) -> Result<Identity, Error> {
        let metadata = fs::metadata(pgdata).when("read", pgdata)?;
        let (owner, uid) = (metadata.uid(), sys::effective_uid());
        match (uid, owner) {
            (0, 0) => Identity::for_new_cluster(),
            (0, _) => Ok(Identity::Other { name: user_name(owner), uid: owner, gid: metadata.gid() }),
            _ if uid == owner => Ok(Identity::Ourselves),
            _ => Err(Error::OwnedByAnother { path: pgdata.to_owned(), owner, uid }),
        }
    }

    /// A command that runs as this user, with a clean environment, in a directory that it can enter.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().current_dir("/").stdin(Stdio::null());
        for name in INHERITED {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        // Messages in English, whatever the machine speaks: we read some of them.
        command.env("LC_ALL", "C");
        if let Identity::Other { uid, gid, .. } = self {
            // This also drops root's supplementary groups.
            command.uid(*uid).gid(*gid);
        }
        command
    }

    /// Whether this user can get to a directory, asked of the kernel: it knows of access lists, mounts and
    /// security modules, and of every directory above.
    pub(crate) fn can_enter(&self, dir: &Path) -> Result<bool, Error> {
        if *self == Identity::Ourselves {
            return Ok(true);
        }
        let shell = Path::new("/bin/sh");
        let mut probe = self.command(shell);
        probe.args(["-c", "test -x \"$1\"", "sh"]).arg(dir).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(probe.status().when("run", shell)?.success())
    }

    /// Gives a file or directory to this user.
    pub(crate) fn give(&self, path: &Path) -> Result<(), Error> {
        match self {
            Identity::Ourselves => Ok(()),
            Identity::Other { uid, gid, .. } => {
                chown(path, Some(*uid), Some(*gid)).when("change the owner of", path)
            }
        }
    }

    /// The user's name, for messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Identity::Ourselves => user_name(sys::effective_uid()),
            Identity::Other { name, .. } => name.clone(),
        }
    }
}

fn user_name(uid: u32) -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (id(fields.nth(1)?)? == uid).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}

fn find_user(users: &str, name: &str) -> Option<Identity> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let (uid, gid) = (id(fields.nth(1)?)?, id(fields.next()?)?);
        (uid != 0).then(|| Identity::Other { name: name.to_owned(), uid, gid })
    })
}

/// A user or group id; macOS writes that of `nobody` as -2.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().or_else(|| text.parse::<i32>().ok().map(i32::cast_unsigned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_from_passwd_lines() {
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:*:-2:-2:x:/:/bin/false\n\
                     postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash\nbroken:x\n";
        let other = |name: &str, uid, gid| Some(Identity::Other { name: name.to_owned(), uid, gid });
        assert_eq!(find_user(users, "postgres"), other("postgres", 101, 104));
        assert_eq!(find_user(users, "nobody"), other("nobody", u32::MAX - 1, u32::MAX - 1));
        assert_eq!(find_user(users, "root"), None, "root is never a user to run the server as");
        assert_eq!(find_user(users, "broken"), None);
        assert_eq!(find_user(users, "absent"), None);
    }
}
