use proptest::prelude::*;
use serde_json::{Map, json};
use std::time::Duration;
use uuid::Uuid;

use super::*;
use crate::generation::{Limits, Message, Role, Usage};

fn request(
    endpoint: Endpoint,
    content: &str,
    max_tokens: Option<u32>,
    size: Option<&str>,
) -> GenerationRequest {
    GenerationRequest {
        request_id: Uuid::nil(),
        endpoint,
        model: "m".into(),
        messages: vec![Message { role: Role::User, content: content.into() }],
        temperature: None,
        max_tokens,
        seed: None,
        size: size.map(str::to_owned),
        params: Map::new(),
        timeout: Duration::from_secs(1),
    }
}

fn output(prompt: i64, cached: i64, completion: i64, text: &str) -> GenerationOutput {
    GenerationOutput {
        provider_id: String::new(),
        text: text.into(),
        image: None,
        limits: Limits::default(),
        provider: "openai".into(),
        model: "m".into(),
        latency_ms: 1,
        usage: Usage {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt.saturating_add(completion),
        },
        cached_tokens: cached,
        raw: json!({}),
    }
}

const EXPECTED: Expectation = Expectation { completion_tokens: 500 };

fn rates() -> Rates {
    let images = BTreeMap::from([("1024x1024".into(), 42), (ANY_SIZE.into(), 60)]);
    Rates { prompt: 1_000_000, cached: Some(500_000), completion: 3_000_000, images }
}

#[test]
fn a_job_is_estimated_by_its_messages_and_what_it_may_generate() {
    let chat = |content, max| {
        Quote::new(&rates(), &request(Endpoint::ChatCompletions, content, max, None), EXPECTED)
    };
    assert_eq!(chat("12345678", Some(10)).unwrap().estimate, (2 + 4) + 30);
    assert_eq!(chat("", None).unwrap().estimate, 4 + 1500);
    let image = |size| Quote::new(&rates(), &request(Endpoint::Images, "a", None, size), EXPECTED);
    assert_eq!(image(Some("1024x1024")).unwrap().estimate, 42);
    assert_eq!(image(Some("512x512")).unwrap().estimate, 60);
    let no_images = Rates { images: BTreeMap::new(), ..rates() };
    assert_eq!(Quote::new(&no_images, &request(Endpoint::Images, "a", None, None), EXPECTED), None);
}

#[test]
fn an_answer_costs_what_the_provider_counted() {
    let quote = Quote { rates: rates(), estimate: 7 };
    let chat = request(Endpoint::Responses, "1234", None, None);
    assert_eq!(quote.cost(&chat, &output(10, 4, 2, "")), 6 + 2 + 6);
    assert_eq!(quote.cost(&chat, &output(10, 99, 0, "")), 5);
    // It counted nothing: 1 + 4 tokens were sent, 2 received.
    assert_eq!(quote.cost(&chat, &output(0, 0, 0, "12345")), 5 + 6);
    let cheap = Quote { rates: Rates { prompt: 1, ..Rates::default() }, estimate: 1 };
    assert_eq!(cheap.cost(&chat, &output(1, 0, 0, "")), 1, "rounded up");
    let free = Quote { rates: Rates::default(), estimate: 0 };
    assert_eq!(free.cost(&chat, &output(1000, 0, 1000, "")), 0);
}

#[test]
fn the_price_in_force_is_the_models_own_or_its_providers() {
    let day = |day: &str| {
        let text = json!({"provider": "p", "from": day});
        serde_json::from_value::<Price>(text).unwrap().from.unwrap()
    };
    let price = |model: Option<&str>, from: Option<&str>, until: Option<&str>, prompt| Price {
        provider: "p".into(),
        model: model.map(str::to_owned),
        from: from.map(day),
        until: until.map(day),
        rates: Rates { prompt, ..Rates::default() },
    };
    let list = PriceList::new(vec![
        price(None, None, None, 1),
        price(Some("a"), Some("2026-01-01"), None, 2),
        price(Some("a"), Some("2026-02-01"), Some("2026-03-01"), 3),
        price(Some("a"), Some("2026-02-01"), Some("2026-03-01"), 4),
    ]);
    let at = |when: &str, model| list.at(day(when), "p", model).map(|rates| rates.prompt);
    assert_eq!(at("2025-12-31", "a"), Some(1), "the model's own is not in force yet");
    assert_eq!(at("2026-01-01", "a"), Some(2));
    assert_eq!(at("2026-01-31T23:59:59.999Z", "a"), Some(2));
    assert_eq!(at("2026-02-01", "a"), Some(4), "of two that are alike, the later one");
    assert_eq!(at("2026-03-01", "a"), Some(2), "it ended");
    assert_eq!(at("2026-03-01", "b"), Some(1));
    assert_eq!(list.at(day("2026-03-01"), "q", "a"), None);
}

#[test]
fn what_cannot_be_a_price_is_refused() {
    let check = |value: serde_json::Value| {
        let price: Price = serde_json::from_value(value).map_err(|error| error.to_string())?;
        price.check().map_err(|error| error.to_string())
    };
    assert_eq!(check(json!({"provider": "p", "prompt": 1, "images": {"any": 2}})), Ok(()));
    for (bad, said) in [
        (json!({"provider": "p", "prompt": -1}), "between 0 and"),
        (json!({"provider": "p", "images": {"any": -1}}), "between 0 and"),
        (json!({"provider": "p", "from": "2026-02-01", "until": "2026-02-01"}), "later than `from`"),
        (json!({"provider": "p", "from": "soon"}), "`soon` is not a date"),
        (json!({"provider": "", "prompt": 1}), "`provider`"),
        (json!({"provider": "p", "model": ""}), "`model`"),
    ] {
        assert!(check(bad.clone()).unwrap_err().contains(said), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_count_overflows_or_earns(prompt: i64, cached: i64, completion: i64, rate in 0..=MAX_RATE) {
        let rates = Rates { prompt: rate, cached: Some(rate / 2), completion: rate, images: BTreeMap::new() };
        let cost = rates.tokens(prompt, cached, completion);
        prop_assert!(cost >= 0);
        prop_assert!(rate == 0 || (prompt <= 0 && completion <= 0) || cost > 0);
    }
}
