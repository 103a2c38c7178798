use super::*;

fn read(file: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
    let variable = |name: &str| {
        environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    };
    Config::read(Some(file), variable).map_err(|error| error.to_string())
}

#[test]
fn the_defaults_are_those_of_the_table() {
    let config = read("", &[]).unwrap();
    assert_eq!(config.q_gen_create_concurrency, 5);
    assert_eq!(config.generation_job_ttl, Duration::from_mins(30));
    assert_eq!(config.generation_policy(CallKind::Text).retry, RetrySchedule::default());
    assert!(config.database_url.is_none());
    assert_eq!(config.admission_limits(), Limits { per_account: 1_000_000, overall: 5_000_000 });
    assert_eq!((config.job_retention, config.public_status), (Some(Duration::from_hours(720)), None));
}

#[test]
fn what_has_ended_is_kept_for_a_time_or_for_ever() {
    for (text, keep) in [("0", None), ("off", None), ("0s", None), ("36h", Some(Duration::from_hours(36)))] {
        assert_eq!(read("", &[("JOB_RETENTION", text)]).unwrap().job_retention, keep, "{text}");
    }
    assert_eq!(read("public_status = true", &[]).unwrap().public_status, Some(true));
}

#[test]
fn a_developer_is_limited_only_if_he_asks_for_it() {
    let shown = |environment: &[_], mode| read("", environment).unwrap().rate_limit(mode).to_string();
    assert_eq!(shown(&[], Mode::Production), "60,1m");
    assert_eq!(shown(&[], Mode::Dev), "1000000,1m");
    for text in ["7,2h", "off"] {
        for mode in [Mode::Dev, Mode::Production] {
            assert_eq!(shown(&[("RATE_LIMIT_DEFAULT", text)], mode), text);
        }
    }
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
    let config =
        read("q_gen_create_concurrency = 7\nmax_body_bytes = 9", &[("MAX_BODY_BYTES", "10")]).unwrap();
    assert_eq!((config.q_gen_create_concurrency, config.max_body_bytes), (7, 10));
}

#[test]
fn job_types_are_declared_in_the_file_or_the_environment() {
    let file =
        "[job_types.\"poem.write\"]\nmodel = \"m\"\nendpoint = \"responses\"\nparams = { top_p = 0.5 }";
    let rules = read(file, &[]).unwrap().submission_rules().unwrap();
    assert_eq!(rules.job_types.get("poem.write").unwrap().model.as_deref(), Some("m"));
    let rules = read("", &[("JOB_TYPES", r#"{"a": {}}"#)]).unwrap().submission_rules().unwrap();
    assert!(rules.job_types.get("a").is_some());
}

#[test]
fn mistakes_are_named() {
    for (file, environment, named) in [
        ("q_gen_create_concurency = 7", &[][..], "q_gen_create_concurency"),
        ("", &[("Q_GEN_CREATE_CONCURRENCY", "many")], "q_gen_create_concurrency"),
        ("", &[("Q_GEN_CREATE_CONCURRENCY", "0")], "q_gen_create_concurrency"),
        ("", &[("GENERATION_JOB_TTL", "soon")], "soon"),
        ("", &[("JOB_RETENTION", "long")], "long"),
        ("", &[("RATE_LIMIT_DEFAULT", "60/1m")], "60/1m"),
        ("", &[("MAX_QUEUED", "-1")], "max_queued"),
        ("", &[("PUBLIC_STATUS", "perhaps")], "public_status"),
        ("", &[("LISTEN", "here")], "listen"),
        ("", &[("DATABASE_URL", "mysql://user:hidden@host/db")], "database_url"),
        ("", &[("DATABASE_URL", "somewhere")], "database_url"),
        ("", &[("OPERATOR_DATABASE_URL", "mysql://user:hidden@host/db")], "operator_database_url"),
        ("", &[("TOLLGATE_ADMIN_TOKEN", "hidden-and-shor")], "at least 16 characters"),
        ("", &[("TOLLGATE_ADMIN_TOKEN", "hidden, and long enough")], "no spaces"),
        ("[job_types.x]\ntemperature = 9.0", &[], "`x`"),
        ("[job_types.x]\ntemprature = 1.0", &[], "temprature"),
    ] {
        let error = read(file, environment).unwrap_err();
        assert!(error.contains(named), "{file} {environment:?}: {error}");
        assert!(!error.contains("hidden"), "{error}");
    }
}

/// The table of settings, as `docs/configuration.md` shows it.
fn table() -> String {
    let mut text = String::from("| setting | default | what it does |\n|---|---|---|\n");
    for Setting { name, default, doc } in SETTINGS {
        let default = default.map_or_else(String::new, |value| format!("`{value}`"));
        text += &format!("| `{name}` | {default} | {doc} |\n");
    }
    text
}

#[test]
fn the_documentation_holds_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let docs = std::fs::read_to_string(path).unwrap();
    assert!(docs.contains(&table()), "docs/configuration.md must hold this table:\n{}", table());
}
