use std::time::Duration;

use serde_json::{Map, json};

use super::*;
use crate::generation::{Endpoint, Message, Role};

fn request(prompt: &str) -> GenerationRequest {
    GenerationRequest {
        request_id: Uuid::from_u128(1),
        endpoint: Endpoint::Images,
        model: "gpt-image-1".into(),
        messages: vec![Message { role: Role::User, content: prompt.into() }],
        temperature: None,
        max_tokens: None,
        seed: Some(7),
        size: Some("1024x1024".into()),
        params: Map::new(),
        timeout: Duration::from_mins(1),
    }
}

#[test]
fn a_size_is_two_sides_or_auto() {
    for size in ["auto", "1x1", "1024x1024", "1536x1024", "99999x1"] {
        assert!(is_size(size), "{size}");
    }
    for size in
        ["", "x", "1024", "1024x", "x1024", "0x1", "01x1", "1x1x1", "1X1", "-1x1", "1 x1", "100000x1", "big"]
    {
        assert!(!is_size(size), "{size}");
    }
}

#[test]
fn an_image_is_known_by_how_it_begins() {
    for (bytes, known) in [
        (&b"\x89PNG\r\n\x1a\n...."[..], Some(MediaType::Png)),
        (b"\xff\xd8\xff\xe0", Some(MediaType::Jpeg)),
        (b"RIFF\x10\0\0\0WEBPVP8 ", Some(MediaType::Webp)),
        (b"RIFF\x10\0\0\0WAVEfmt ", None),
        (b"GIF89a", None),
        (b"<svg xmlns=", None),
        (b"<html>", None),
        (b"\x89PNG", None),
        (b"", None),
    ] {
        assert_eq!(MediaType::sniff(bytes), known, "{bytes:?}");
    }
    for known in MediaType::ALL {
        assert_eq!(MediaType::parse(known.as_str()), Some(known));
        assert_eq!(serde_json::to_value(known).unwrap(), known.as_str());
    }
}

#[test]
fn no_url_is_none() {
    for nothing in ["", " ", "\n"] {
        assert_eq!(ImageUrl::new(nothing), Err(NoImageUrl));
    }
    let own = ImageUrl::own(Uuid::nil()).unwrap();
    assert_eq!(own.as_str(), "/v1/images/00000000-0000-0000-0000-000000000000/content");
}

#[test]
fn whatever_changes_the_picture_changes_its_key() {
    let mut all = vec![request("a gate"), request("a toll")];
    let mut change = |change: fn(&mut GenerationRequest)| {
        let mut request = request("a gate");
        change(&mut request);
        all.push(request);
    };
    change(|request| request.seed = Some(8));
    change(|request| request.seed = None);
    change(|request| request.model = "dall-e-3".into());
    change(|request| request.size = Some("auto".into()));
    change(|request| (request.model, request.size) = ("gpt-image-11".into(), Some("024x1024".into())));
    change(|request| request.params = json!({"quality": "high"}).as_object().unwrap().clone());
    for (nr, one) in all.iter().enumerate() {
        for other in &all[nr + 1..] {
            assert_ne!(ContentKey::of(one), ContentKey::of(other), "{one:?} {other:?}");
        }
    }
}

#[test]
fn a_seed_is_shared_by_jobs_and_no_seed_is_the_jobs_own() {
    let (mut one, mut other) = (request("a gate"), request("a gate"));
    other.request_id = Uuid::from_u128(2);
    other.timeout = Duration::from_secs(5);
    assert_eq!(ContentKey::of(&one), ContentKey::of(&other));
    (one.seed, other.seed) = (None, None);
    assert_ne!(ContentKey::of(&one), ContentKey::of(&other));
    assert_eq!(ContentKey::of(&one), ContentKey::of(&one.clone()), "its retry is the same");
}

#[test]
fn a_key_is_a_name_of_64_plain_characters() {
    let name = ContentKey::of(&request("../../etc/passwd")).to_string();
    assert_eq!(name.len(), 64);
    assert!(name.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()), "{name}");
}

#[test]
fn a_storage_key_leads_nowhere_else() {
    let key = StorageKey::of(AccountId(Uuid::max()), &ContentKey::of(&request("x")));
    assert_eq!(StorageKey::parse(key.as_str()), Some(key));
    for bad in [
        "", "/", "a", "a/", "/b", "a/../b", "../b", "a/b/c", "a/.", "a/b.png", "a\\b/c", "a/b\0", "ä/b",
        "a /b",
    ] {
        assert_eq!(StorageKey::parse(bad), None, "{bad}");
    }
}
