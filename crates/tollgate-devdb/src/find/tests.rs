use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

/// A directory that a server's user can reach, with programs that only know their version.
fn fake_bin(programs: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, says) in programs {
        let file = dir.path().join(name);
        fs::write(&file, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

fn on_path(dirs: &[&Path]) -> Search {
    Search { path: std::env::join_paths(dirs).unwrap(), ..Search::default() }
}

fn identity() -> Identity {
    Identity::for_new_cluster().unwrap()
}

#[test]
fn nothing_found_says_what_to_install() {
    let message = Search::default().any(&identity()).unwrap_err().to_string();
    for hint in ["apt-get install postgresql", "dnf install", "brew install", "PGBIN", "DATABASE_URL"] {
        assert!(message.contains(hint), "no {hint} in: {message}");
    }
}

#[test]
fn unsupported_versions_are_named_and_skipped() {
    let old = fake_bin(&[("postgres", "postgres (PostgreSQL) 9.6.24"), ("initdb", "")]);
    let next = fake_bin(&[("postgres", "postgres (PostgreSQL) 19beta1"), ("initdb", "")]);
    let message = on_path(&[old.path(), next.path()]).any(&identity()).unwrap_err().to_string();
    assert!(message.contains("it is PostgreSQL 9, and Tollgate supports 15 to 18"), "{message}");
    assert!(message.contains("it is PostgreSQL 19, and"), "{message}");
    let good = fake_bin(&[("postgres", "postgres (PostgreSQL) 17.2 (Debian 17.2-1)"), ("initdb", "")]);
    let found = on_path(&[old.path(), good.path()]).any(&identity()).unwrap();
    assert_eq!((found.version(), found.dir()), (17, fs::canonicalize(good.path()).unwrap().as_path()));
}

#[test]
fn a_symlink_is_followed_to_its_siblings() {
    let real = fake_bin(&[("postgres", "postgres (PostgreSQL) 16.1"), ("initdb", "")]);
    let links = fake_bin(&[]);
    symlink(real.path().join("postgres"), links.path().join("postgres")).unwrap();
    let found = on_path(&[links.path()]).any(&identity()).unwrap();
    assert_eq!(found.dir(), fs::canonicalize(real.path()).unwrap());
}

#[test]
fn pg_config_is_asked() {
    let real = fake_bin(&[("postgres", "postgres (PostgreSQL) 16.1"), ("initdb", "")]);
    let tools = fake_bin(&[("pg_config", real.path().to_str().unwrap())]);
    assert_eq!(on_path(&[tools.path()]).any(&identity()).unwrap().version(), 16);
}

#[test]
fn a_cluster_gets_a_server_of_its_version() {
    let newer = fake_bin(&[("postgres", "postgres (PostgreSQL) 18.0"), ("initdb", "")]);
    let older = fake_bin(&[("postgres", "postgres (PostgreSQL) 15.14"), ("initdb", "")]);
    let search = on_path(&[newer.path(), older.path()]);
    assert_eq!(search.any(&identity()).unwrap().version(), 18);
    assert_eq!(search.of_version(&identity(), 15, Path::new("/data")).unwrap().version(), 15);
    let message = search.of_version(&identity(), 16, Path::new("/data")).unwrap_err().to_string();
    assert!(
        message.contains("/data was made by PostgreSQL 16") && message.contains("it is PostgreSQL 18"),
        "{message}"
    );
}

#[test]
fn a_wrong_pgbin_is_told_and_not_worked_around() {
    let good = fake_bin(&[("postgres", "postgres (PostgreSQL) 16.1"), ("initdb", "")]);
    let lone = fake_bin(&[("postgres", "postgres (PostgreSQL) 16.1")]);
    let search = Search { pgbin: Some(lone.path().to_owned()), ..on_path(&[good.path()]) };
    let message = search.any(&identity()).unwrap_err().to_string();
    assert!(message.contains("PGBIN") && message.contains("there is no `initdb` in it"), "{message}");
    // As root, the server runs as somebody who cannot get past a private directory.
    let hidden = fake_bin(&[("postgres", "postgres (PostgreSQL) 16.1"), ("initdb", "")]);
    fs::set_permissions(hidden.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let outcome = Search { pgbin: Some(hidden.path().to_owned()), ..Search::default() }.any(&identity());
    match identity() {
        Identity::Ourselves => assert_eq!(outcome.unwrap().version(), 16),
        Identity::Other { name, .. } => {
            let message = outcome.unwrap_err().to_string();
            assert!(message.contains(&format!("user `{name}` cannot run")), "{message}");
        }
    }
}

#[test]
fn versions_are_read_from_names() {
    assert_eq!(leading_number("15.14"), Some(15));
    assert_eq!(leading_number("19devel"), Some(19));
    assert_eq!(leading_number("(PostgreSQL)"), None);
}
