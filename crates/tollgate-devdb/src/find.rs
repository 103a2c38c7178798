//! Finding a PostgreSQL server on this machine.
//!
//! `PGBIN` if it is set, and then nothing else; else the `postgres` on `PATH` (a symlink there may lack its
//! sibling tools, so it is followed), what `pg_config` names, and where packages are known to put it,
//! newest first. Debian, for one, puts only wrappers on `PATH`.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Rejected},
    privileges::Identity,
};

/// The major versions that Tollgate is tested with.
const SUPPORTED: std::ops::RangeInclusive<u32> = 15..=18;

/// Where packages put a server: the directory above, the name's start before the version, and what
/// follows the version.
const PACKAGES: [(&str, &str, &str); 7] = [
    ("/usr/lib/postgresql", "", "bin"),                       // Debian, Ubuntu
    ("/usr", "pgsql-", "bin"),                                // postgresql.org's RPMs
    ("/usr/libexec", "postgresql", ""),                       // Alpine
    ("/opt/homebrew/opt", "postgresql@", "bin"),              // Homebrew, Apple silicon
    ("/usr/local/opt", "postgresql@", "bin"),                 // Homebrew, Intel
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql@", "bin"), // Homebrew, Linux
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"), // Postgres.app
];

/// Where a server built from source goes.
const SOURCE_BUILD: &str = "/usr/local/pgsql/bin";

/// A PostgreSQL server's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    dir: PathBuf,
    version: u32,
}

impl Binaries {
    /// The directory that holds them; other tools, such as `psql`, are often there too.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The major version.
    pub fn version(&self) -> u32 {
        self.version
    }

    pub(crate) fn postgres(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    pub(crate) fn initdb(&self) -> PathBuf {
        self.dir.join("initdb")
    }
}

/// Finds the server that a new cluster would use.
pub fn find_binaries() -> Result<Binaries, Error> {
    Search::from_env().any(&Identity::for_new_cluster()?)
}

/// Where to look.
#[derive(Debug, Default)]
pub(crate) struct Search {
    pgbin: Option<PathBuf>,
    path: OsString,
    packages: bool,
}

impl Search {
    pub(crate) fn from_env() -> Search {
        let pgbin = std::env::var_os("PGBIN").filter(|value| !value.is_empty()).map(PathBuf::from);
        Search { pgbin, path: std::env::var_os("PATH").unwrap_or_default(), packages: true }
    }

    /// The first server that will do.
    pub(crate) fn any(&self, identity: &Identity) -> Result<Binaries, Error> {
        self.first(identity, |_| true, |rejected| Error::NotFound { rejected })
    }

    /// The first server that can serve a cluster which exists.
    pub(crate) fn of_version(
        &self,
        identity: &Identity,
        cluster: u32,
        data_dir: &Path,
    ) -> Result<Binaries, Error> {
        let none = |rejected| Error::WrongVersion { data_dir: data_dir.to_owned(), cluster, rejected };
        self.first(identity, |version| version == cluster, none)
    }

    /// The first server of an accepted version, or else what `none` makes of those that were seen.
    fn first(
        &self,
        identity: &Identity,
        accept: impl Fn(u32) -> bool,
        none: impl FnOnce(Vec<Rejected>) -> Error,
    ) -> Result<Binaries, Error> {
        let judge = |dir: PathBuf| match probe(&dir, identity) {
            Ok(binaries) if accept(binaries.version) => Ok(binaries),
            Ok(binaries) => Err(Rejected { reason: format!("it is PostgreSQL {}", binaries.version), dir }),
            Err(reason) => Err(Rejected { dir, reason }),
        };
        if let Some(dir) = &self.pgbin {
            // What somebody named is what they want: a fault in it is told, not worked around.
            let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.clone());
            return match probe(&dir, identity) {
                Err(reason) => Err(Error::Pgbin { dir, reason }),
                Ok(_) => judge(dir).map_err(|rejected| none(vec![rejected])),
            };
        }
        let mut rejected: Vec<Rejected> = Vec::new();
        for dir in self.candidates() {
            if rejected.iter().any(|seen| seen.dir == dir) {
                continue;
            }
            match judge(dir) {
                Ok(binaries) => return Ok(binaries),
                Err(reason) => rejected.push(reason),
            }
        }
        Err(none(rejected))
    }

    /// The directories that hold a `postgres`, in the order of preference.
    fn candidates(&self) -> impl Iterator<Item = PathBuf> {
        let on_path = std::env::split_paths(&self.path).map(|dir| dir.join("postgres"));
        let by_config =
            std::iter::once_with(|| self.ask_pg_config()).flatten().map(|dir| dir.join("postgres"));
        let packaged = self.packages.then(packaged).into_iter().flatten().map(|dir| dir.join("postgres"));
        on_path.chain(by_config).chain(packaged).filter_map(|postgres| {
            let postgres = fs::canonicalize(postgres).ok().filter(|postgres| postgres.is_file())?;
            postgres.parent().map(Path::to_owned)
        })
    }

    fn ask_pg_config(&self) -> Option<PathBuf> {
        let program =
            std::env::split_paths(&self.path).map(|dir| dir.join("pg_config")).find(|file| file.is_file())?;
        let output = Identity::Ourselves.command(program).arg("--bindir").output().ok()?;
        let dir = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        dir.is_absolute().then_some(dir)
    }
}

/// The packages' directories that exist, newest version first.
fn packaged() -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for (parent, prefix, suffix) in PACKAGES {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let version = entry.file_name().to_string_lossy().strip_prefix(prefix).and_then(leading_number);
            if let Some(version) = version {
                found.push((version, entry.path().join(suffix)));
            }
        }
    }
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, dir)| dir).chain([PathBuf::from(SOURCE_BUILD)]).collect()
}

/// Whether the directory holds a server that we support and that the user can run. It is run to find out.
fn probe(dir: &Path, identity: &Identity) -> Result<Binaries, String> {
    for name in ["postgres", "initdb"] {
        if !dir.join(name).is_file() {
            return Err(format!("there is no `{name}` in it"));
        }
    }
    let version = version(&dir.join("postgres"), identity)?;
    if !SUPPORTED.contains(&version) {
        let (first, last) = (SUPPORTED.start(), SUPPORTED.end());
        return Err(format!("it is PostgreSQL {version}, and Tollgate supports {first} to {last}"));
    }
    Ok(Binaries { dir: dir.to_owned(), version })
}

/// The major version that a server says it has.
pub(crate) fn version(postgres: &Path, identity: &Identity) -> Result<u32, String> {
    let output = identity.command(postgres).arg("--version").output();
    let output =
        output.map_err(|cause| format!("user `{}` cannot run its `postgres`: {cause}", identity.name()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"
    let version = text.split_whitespace().find_map(leading_number);
    version.ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("its `postgres --version` does not tell ({}): {}{}", output.status, text.trim(), said.trim())
    })
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests;
