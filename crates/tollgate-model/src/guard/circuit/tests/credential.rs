//! A credential that is refused.

use super::*;

#[test]
fn a_refused_credential_is_tried_again_now_and_then_and_one_good_probe_is_enough() {
    let mut story = Story::new();
    let recheck_at = at(30_000);
    let reason = "insufficient_quota".to_owned();
    assert_eq!(story.call(OutcomeKind::CredentialRefused), [Effect::Disabled { reason, recheck_at }]);
    assert_eq!(story.call(OutcomeKind::CredentialRefused), []);
    assert_eq!(story.decide(true, 0), Decision::Wait { until: Some(recheck_at), why: Waiting::Credential });
    assert_eq!(story.take(1), Err(Some(recheck_at)));
    // It is asked as long after as it has lasted, up to the longest.
    for (wait, next) in
        [(30, 60_000), (30, 120_000), (60, 240_000), (120, 480_000), (240, 960_000), (480, 1_560_000)]
    {
        story.wait(wait);
        assert_eq!(story.decide(true, 0), Decision::ProbeOnly);
        assert_eq!(story.probe(OutcomeKind::CredentialRefused).len(), 1);
        assert_eq!(story.take(1), Err(Some(at(next))));
    }
    story.wait(600);
    story.probe(OutcomeKind::ServerError);
    assert_eq!(story.take(1), Err(Some(at(1_562_000))));
    story.wait(2);
    let down_for = ms(1_562_000);
    assert_eq!(story.probe(OutcomeKind::Success), [Effect::Closed { by: ClosedBy::Credential, down_for }]);
}

#[test]
fn while_a_fleet_changes_its_key_only_those_with_the_old_one_wait() {
    let mut story = Story::new();
    story.ended(refusal(1), 10, 0);
    assert_eq!(story.decide(true, 2), Decision::NewCredential);
    assert_eq!(story.event(Event::CredentialInUse { credential: print(1) }), []);
    let closed = story.event(Event::CredentialInUse { credential: print(2) });
    assert_eq!(closed, [Effect::Closed { by: ClosedBy::Credential, down_for: Duration::ZERO }]);
    assert!(matches!(story.decide(true, 2), Decision::Admit { .. }));
    let until = Some(at(600_000));
    assert_eq!(story.decide(true, 1), Decision::Wait { until, why: Waiting::Credential });
    // Calls of the old one that were under way.
    assert_eq!(story.ended(refusal(1), 10, 0), []);
    assert_eq!(story.state(), "closed");
    // The new one is no better: the old one is not tried for that.
    story.ended(refusal(2), 10, 0);
    assert_eq!(story.event(Event::CredentialInUse { credential: print(1) }), []);
    assert_eq!(story.state(), "disabled");
    story.wait(30);
    assert_eq!(story.decide(true, 2), Decision::ProbeOnly);
}

#[test]
fn a_probe_with_a_superseded_key_says_nothing() {
    let mut story = Story::new();
    story.ended(refusal(1), 10, 0);
    story.event(Event::CredentialInUse { credential: print(2) });
    story.half_open();
    let epoch = story.take(1).unwrap();
    assert_eq!(story.event(Event::ProbeEnded { epoch, outcome: refusal(1) }), []);
    assert_eq!((story.state(), story.decide(true, 2)), ("half_open", Decision::ProbeOnly));
}
