//! The shape of the workspace: which crate may see which, and that source files stay files one can read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Every edge that may be. A crate that is not listed fails the test; so does an edge.
const MAY_SEE: &[(&str, &[&str])] = &[
    ("tollgate-model", &[]),
    ("tollgate-store", &["tollgate-model"]),
    ("tollgate-domain", &["tollgate-model", "tollgate-store"]),
    ("tollgate-outbound", &["tollgate-model"]),
    ("tollgate-http", &["tollgate-model", "tollgate-domain", "tollgate-outbound"]),
    ("tollgate-worker", &["tollgate-model", "tollgate-domain", "tollgate-outbound"]),
    ("tollgate-devdb", &[]),
    ("tollgate-sim", &[]),
    (
        "tollgate",
        &[
            "tollgate-model",
            "tollgate-domain",
            "tollgate-outbound",
            "tollgate-http",
            "tollgate-worker",
            "tollgate-devdb",
            "tollgate-sim",
        ],
    ),
    // For tests and measurements; nothing that ships may see it.
    (
        "tollgate-testkit",
        &["tollgate-model", "tollgate-domain", "tollgate-outbound", "tollgate-devdb", "tollgate-sim"],
    ),
    (
        "tollgate-bench",
        &[
            "tollgate-model",
            "tollgate-domain",
            "tollgate-outbound",
            "tollgate-worker",
            "tollgate-devdb",
            "tollgate-sim",
            "tollgate-testkit",
        ],
    ),
];

/// What only these crates may depend on: a runtime, a driver, an HTTP client.
const ONLY: &[(&str, &[&str])] = &[
    (
        "tokio",
        &[
            "tollgate-store",
            "tollgate-domain",
            "tollgate-outbound",
            "tollgate-http",
            "tollgate-worker",
            "tollgate-sim",
            "tollgate",
            "tollgate-testkit",
            "tollgate-bench",
        ],
    ),
    ("sqlx", &["tollgate-store", "tollgate-testkit", "tollgate-bench"]),
    ("reqwest", &["tollgate-outbound", "tollgate-testkit"]),
    ("axum", &["tollgate-http"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Each crate's dependencies that ship (not those of its tests).
fn crates() -> BTreeMap<String, BTreeSet<String>> {
    let mut manifests = vec![root().join("bench/Cargo.toml")];
    let crates = fs::read_dir(root().join("crates")).unwrap();
    manifests.extend(crates.map(|entry| entry.unwrap().path().join("Cargo.toml")));
    manifests
        .iter()
        .map(|path| {
            let manifest: toml::Table = fs::read_to_string(path).unwrap().parse().unwrap();
            let name = manifest["package"]["name"].as_str().unwrap().to_owned();
            let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
            (name, dependencies.into_iter().flat_map(|table| table.keys().cloned()).collect())
        })
        .collect()
}

#[test]
fn layers_hold() {
    let crates = crates();
    let listed: BTreeSet<&str> = MAY_SEE.iter().map(|(name, _)| *name).collect();
    assert_eq!(crates.keys().map(String::as_str).collect::<BTreeSet<_>>(), listed);
    for (name, may_see) in MAY_SEE {
        let ours = crates[*name].iter().filter(|dependency| dependency.starts_with("tollgate"));
        for dependency in ours {
            assert!(may_see.contains(&dependency.as_str()), "{name} must not see {dependency}");
        }
    }
    for (dependency, owners) in ONLY {
        for (name, dependencies) in &crates {
            let allowed = owners.contains(&name.as_str()) || !dependencies.contains(*dependency);
            assert!(allowed, "{name} must not depend on {dependency}");
        }
    }
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn layers_of_one_file_stay_readable() {
    let mut files = Vec::new();
    for directory in ["crates", "bench"] {
        rust_files(&root().join(directory), &mut files);
    }
    assert!(files.len() > 50);
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() <= 500, "{} is over 500 lines: two rooms in one?", path.display());
        let allow = concat!("#[", "allow(");
        assert!(!text.contains(allow), "{}: use #[expect(…, reason = …)]", path.display());
    }
}
