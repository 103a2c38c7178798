//! Classes as they are configured.

use std::time::Duration;

use serde_json::json;

use super::*;

fn config(value: Value) -> Result<GuardConfig, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

#[test]
fn without_a_word_there_are_two() {
    let config = config(json!({})).unwrap();
    assert_eq!(config, GuardConfig::default());
    let names: Vec<_> = config.classes().map(|class| class.name.as_str()).collect();
    assert_eq!(names, ["text", "image"]);
    let (text, image) = (config.get("text").unwrap(), config.get("image").unwrap());
    assert_eq!((text.settings.open_period, image.settings.open_period).0, Duration::from_secs(20));
    assert_eq!(image.settings.open_period, Duration::from_mins(1));
    assert_eq!((text.settings.bucket_capacity, image.settings.bucket_capacity), (0, 5));
    for class in config.classes() {
        class.settings.validate().unwrap();
        assert_eq!(ClassName::from(class.kind), class.name);
    }
}

#[test]
fn what_a_table_leaves_out_is_as_it_was() {
    let config = config(json!({
        "text": { "open_period": "30s", "bucket_capacity": 20, "weights": { "connect": 0.9 } },
    }))
    .unwrap();
    let defaults = GuardSettings::defaults(CallKind::Text);
    let expected = GuardSettings {
        open_period: Duration::from_secs(30),
        bucket_capacity: 20,
        weights: super::super::settings::Weights { connect: 0.9, ..defaults.weights },
        ..defaults
    };
    assert_eq!(config.get("text").unwrap().settings, expected);
    assert_eq!(config.get("image").unwrap().settings, GuardSettings::defaults(CallKind::Image));
    assert_eq!(config.get("large"), None);
}

#[test]
fn what_cannot_hold_is_refused_with_its_place() {
    let table = [
        (json!({ "txt": {} }), "unknown field `txt`"),
        (json!({ "classes": {} }), "unknown field `classes`"),
        (json!({ "text": { "opn_period": "1s" } }), "guard class `text`: unknown field `opn_period`"),
        (json!({ "text": { "weights": { "dedline": 1 } } }), "unknown field `dedline`"),
        (json!({ "image": { "open_period": "1" } }), "guard class `image`: `1` is not a duration"),
        (json!({ "text": { "models": ["m"] } }), "guard class `text`: unknown field `models`"),
        (json!({ "text": { "window": 0 } }), "guard class `text`: `window` must be"),
    ];
    for (value, expected) in table {
        let error = config(value.clone()).unwrap_err();
        assert!(error.contains(expected), "{value}: {error}");
    }
}

#[test]
fn every_rule_of_the_settings_is_held() {
    let table = [
        ("window", json!(0)),
        ("window", json!(1_001)),
        ("sample_max_age", json!("90s")),
        ("min_attempts", json!(31)),
        ("min_attempts", json!(0)),
        ("failure_rate", json!(0.0)),
        ("failure_rate", json!(1.1)),
        ("timeouts_in_a_row", json!(0)),
        ("open_period", json!("0s")),
        ("open_growth", json!(0.9)),
        ("open_period_cap", json!("19s")),
        ("successes_to_close", json!(0)),
        ("credential_recheck", json!("0s")),
        ("bucket_refill", json!(0)),
        ("bucket_refill_per", json!("0s")),
        ("timeout_floor", json!("0s")),
        ("timeout_floor", json!("91s")),
        ("timeout_initial", json!("91s")),
        ("timeout_min_samples", json!(0)),
        ("latency_slice", json!("999ms")),
        ("latency_slices", json!(0)),
        ("ramp", json!("366d")),
    ];
    for (field, value) in table {
        let error = config(json!({ "text": { field: value } })).unwrap_err();
        assert!(error.starts_with(&format!("guard class `text`: `{field}` must")), "{field}: {error}");
    }
    let error = config(json!({ "text": { "weights": { "connect": 1.5 } } })).unwrap_err();
    assert!(error.contains("`weights.connect` must be from 0 to 1, and is 1.5"), "{error}");
}
