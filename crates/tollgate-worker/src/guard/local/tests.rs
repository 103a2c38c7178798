use tollgate_model::guard::class::CallKind;
use tollgate_model::guard::outcome::Fingerprint;

use super::*;

fn settings(capacity: u32) -> GuardSettings {
    GuardSettings { bucket_capacity: capacity, ..GuardSettings::defaults(CallKind::Text) }
}

fn key() -> LatencyKey {
    LatencyKey { provider: "p".into(), model: "m".into(), kind: CallKind::Text, size: None }
}

fn open(granted: u32) -> Leave {
    Leave {
        gate: Gate::Open(Share::WHOLE),
        pause: None,
        granted,
        more_in: Duration::ZERO,
        probe: None,
        timeouts: HashMap::new(),
    }
}

/// One that may call, with room for three.
fn ready(capacity: u32, now: Instant) -> Local {
    let mut local = Local::new(&settings(capacity), 3, now);
    local.report(now);
    local.learn_leave(open(0), &settings(capacity), 0.0, now);
    local
}

fn call(local: &mut Local, outcome: Outcome, now: Instant) {
    assert_eq!(local.leave(1, now), Some(Passes { count: 1, probe: None }));
    local.begun();
    local.ended(None, Ended { outcome, impatient: false, began: now, at: now }, &key());
}

#[tokio::test]
async fn a_refused_credential_stops_its_own_process_before_anybody_says_so() {
    let now = Instant::now();
    let mut local = ready(0, now);
    let (reason, credential) = ("no".to_owned(), Fingerprint::of(None));
    // What is asked before is answered afterwards, and knows nothing of it.
    local.report(now);
    call(&mut local, Outcome::CredentialRefused { reason, credential }, now);
    assert_eq!(local.leave(1, now), None);
    local.learn_leave(open(0), &settings(0), 0.0, now);
    assert_eq!(local.leave(1, now), None);
    local.report(now);
    local.learn_leave(open(0), &settings(0), 0.0, now);
    assert!(local.leave(1, now).is_some(), "the others know better");
}

#[tokio::test]
async fn tokens_are_asked_for_by_a_claim_and_once() {
    let now = Instant::now();
    let mut local = ready(8, now);
    for _ in 0..2 {
        assert_eq!(local.may(now), May::Call(3), "it may look whether there is something");
        assert!(!local.asks());
    }
    assert_eq!(local.leave(3, now), None);
    assert!(local.asks() && local.has_to_report(now));
    assert_eq!(local.report(now).0.want, 2, "no more than a quarter of the bucket");
    assert_eq!((local.may(now), local.leave(3, now)), (May::Ask, None), "the answer is under way");
    assert_eq!(local.report(now).0.want, 0);
    local.learn_leave(open(2), &settings(8), 0.0, now);
    assert_eq!(local.leave(3, now), Some(Passes { count: 2, probe: None }));
    assert_eq!(local.report(now).0.want, 1);

    let none = Leave { more_in: Duration::from_secs(9), ..open(0) };
    local.learn_leave(none, &settings(8), 0.0, now);
    assert_eq!(local.may(now), May::Wait(Some(now + Duration::from_secs(9))));
}

#[tokio::test]
async fn a_report_that_failed_is_made_again_with_all_that_was_in_it() {
    let now = Instant::now();
    let mut local = ready(8, now);
    let minute = Duration::from_mins(1);
    local.tokens = 1;
    call(&mut local, Outcome::ServerError, now);
    local.pause_asked(Some(minute), now);
    local.limited_by_provider(7);
    let (_, unsent) = local.report(now);
    local.report_failed(unsent);
    assert!(local.has_to_report(now));
    let (report, _) = local.report(now);
    assert_eq!((report.calls.len(), report.pause, report.remaining), (1, Some(minute), Some(7)));
}

#[tokio::test]
async fn calls_that_hang_are_told_of_while_they_do() {
    let now = Instant::now();
    let mut local = ready(0, now);
    assert!(local.leave(2, now).is_some());
    local.begun();
    assert!(!local.has_to_report(now));
    let later = now + super::super::REPORTS;
    assert!(local.has_to_report(later));
    assert_eq!(local.report(later).0.in_flight, 1);
    local.learn_leave(open(0), &settings(0), 0.0, later);
    assert!(!local.has_to_report(later + super::super::REPORTS), "nothing has changed since");
}
