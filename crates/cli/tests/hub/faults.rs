//! Broken connections, wrong bytes and refusals.

use super::*;

const SIZE: usize = 3_000_000;

#[test]
fn cut_connections_are_gone_on_with_where_they_broke_off() {
    let place = Place::new();
    // More often than may fail in a row, but each time there is progress.
    place.fault(TRANSFORMER, 4, Fault::Cut(500_000));
    place.fetch().unwrap();
    assert!(place.is_right(TRANSFORMER));
    assert_eq!(place.offsets(TRANSFORMER), [0, 500_000, 1_000_000, 1_500_000, 2_000_000]);
}

#[test]
fn a_connection_that_ends_early_without_a_length_is_no_whole_file() {
    let place = Place::new();
    place.fault(TRANSFORMER, 1, Fault::CutWithoutLength(700_000));
    place.fetch().unwrap();
    assert!(place.is_right(TRANSFORMER));
    assert_eq!(place.offsets(TRANSFORMER), [0, 700_000]);
}

#[test]
fn connections_that_break_at_once_end_in_an_error_and_what_came_stays() {
    let place = Place::new();
    place.fault(TRANSFORMER, 1, Fault::Cut(500_000));
    place.fault(TRANSFORMER, 2, Fault::Cut(0));
    assert!(matches!(place.problem(), HubProblem::Network { .. }));
    assert_eq!(fs::metadata(place.partial(TRANSFORMER)).unwrap().len(), 500_000);
    assert!(!place.blob(TRANSFORMER).exists() && !place.snapshot().join(TRANSFORMER).exists());
    place.server.asked();
    place.fetch().unwrap();
    assert!(place.is_right(TRANSFORMER) && !place.partial(TRANSFORMER).exists());
    assert_eq!(place.offsets(TRANSFORMER), [500_000]);
}

#[test]
fn a_server_that_sends_the_whole_file_again_is_read_from_the_start() {
    let place = Place::new();
    place.fault(TRANSFORMER, 1, Fault::Cut(500_000));
    place.fault(TRANSFORMER, 1, Fault::IgnoreRange);
    place.fetch().unwrap();
    assert!(place.is_right(TRANSFORMER));
}

#[test]
fn silence_is_a_broken_connection() {
    let mut place = Place::new();
    place.hub.timeout = Duration::from_secs(1);
    place.server.fault("GET /api/", 1, Fault::Hang);
    place.fault(TRANSFORMER, 1, Fault::Stall(500_000));
    place.fetch().unwrap();
    assert!(place.is_right(TRANSFORMER));
    assert_eq!(place.offsets(TRANSFORMER), [0, 500_000]);
}

#[test]
fn what_an_earlier_run_left_is_checked_too() {
    let place = Place::new();
    let right = place.server.state().files[TRANSFORMER].clone();
    let left = |bytes: &[u8]| {
        fs::create_dir_all(place.root().join("blobs")).unwrap();
        fs::write(place.partial(TRANSFORMER), bytes).unwrap();
        for file in [place.blob(TRANSFORMER), place.snapshot().join(TRANSFORMER)] {
            let _ = fs::remove_file(file);
        }
        place.server.asked();
        place.fetch().unwrap();
        assert!(place.is_right(TRANSFORMER) && !place.partial(TRANSFORMER).exists());
        place.offsets(TRANSFORMER)
    };
    assert_eq!(left(&right[..1_000_000]), [1_000_000]);
    assert_eq!(left(&right), Vec::<usize>::new(), "it was whole");
    assert_eq!(left(&[0; 1_000_000]), [1_000_000, 0], "other bytes: from the start, once");
    assert_eq!(left(&[0; SIZE]), [0]);
    assert_eq!(left(&[0; SIZE + 1]), [0]);
    assert_eq!(left(&[]), [0]);
}

#[test]
fn wrong_bytes_are_an_error_and_are_thrown_away() {
    for (name, size) in [(TRANSFORMER, SIZE), ("tokenizer/vocab.json", 100)] {
        let place = Place::new();
        let question = if size > server::LARGE { place.server.hash(name) } else { name.to_string() };
        place.server.fault(&question, 1, Fault::Corrupt);
        let expected = place.server.hash(name);
        match place.problem() {
            HubProblem::WrongHash { expected: listed, found } => {
                assert!(listed == expected && found != expected)
            }
            other => panic!("{other:?}"),
        }
        assert!(!place.partial(name).exists() && !place.blob(name).exists());
        assert!(!place.snapshot().join(name).exists());
        place.fetch().unwrap();
        assert!(place.is_right(name));
    }
}

#[test]
fn another_length_is_an_error_and_is_thrown_away() {
    let place = Place::new();
    place.fault(TRANSFORMER, 1, Fault::Longer);
    let (expected, found) = (SIZE as u64, SIZE as u64 + 1);
    assert_eq!(place.problem(), HubProblem::WrongSize { expected, found });
    assert!(!place.partial(TRANSFORMER).exists() && !place.blob(TRANSFORMER).exists());
    // Also where it shows only when a broken connection is gone on with.
    place.fault(TRANSFORMER, 1, Fault::Cut(500_000));
    place.fault(TRANSFORMER, 1, Fault::Longer);
    assert_eq!(place.problem(), HubProblem::WrongSize { expected, found });
    place.fetch().unwrap();
}

#[test]
fn a_file_in_the_cache_that_was_cut_short_is_fetched_again() {
    let place = Place::new();
    place.fetch().unwrap();
    fs::write(place.blob(TRANSFORMER), b"short").unwrap();
    place.fetch().unwrap();
    assert!(place.is_right(TRANSFORMER));
}

#[test]
fn a_gated_repository_says_how_to_get_access() {
    let mut place = Place::new();
    let gated: &[(&str, &str)] =
        &[("X-Error-Code", "GatedRepo"), ("X-Error-Message", "Access is restricted.")];
    place.server.fault("/resolve/", 1, Fault::Status(401, gated));
    let text = place.fetch().unwrap_err().to_string();
    let page = format!("accept the licence on its page, {}/{NAME}", place.server.url);
    for part in ["test/tiny: ", &page, "`hf auth login`", "HF_TOKEN"] {
        assert!(text.contains(part), "{text}");
    }
    place.hub.token = Some("hf_of_somebody_else".into());
    place.server.fault("/resolve/", 1, Fault::Status(403, gated));
    let text = place.fetch().unwrap_err().to_string();
    assert!(text.contains(&page) && text.contains("let the token in use"), "{text}");
    assert!(!text.contains("somebody"), "{text}");
}

#[test]
fn each_refusal_is_an_error_of_its_own_that_is_not_asked_again() {
    let mut place = Place::new();
    let refused = |place: &Place, question: &str, status, headers| {
        place.server.asked();
        place.server.fault(question, 1, Fault::Status(status, headers));
        place.problem()
    };
    assert_eq!(refused(&place, "/api/", 401, &[]), HubProblem::NotFound { token: false });
    assert_eq!(
        refused(&place, "/api/", 404, &[("X-Error-Code", "RepoNotFound")]),
        HubProblem::NotFound { token: false }
    );
    assert_eq!(refused(&place, "/resolve/", 404, &[("X-Error-Code", "EntryNotFound")]), HubProblem::NoFile);
    let reason = "Access to this resource is disabled.";
    let headers: &[(&str, &str)] = &[("X-Error-Message", "Access to this resource is disabled.")];
    assert_eq!(refused(&place, "/api/", 403, headers), HubProblem::Forbidden { reason: reason.into() });
    assert_eq!(place.server.asked().len(), 1);
    assert_eq!(problem(fetch(&place.hub, "test/other")), HubProblem::NotFound { token: false });
    assert_eq!(problem(fetch(&place.hub, "test/tiny@v2")), HubProblem::NoRevision);
    place.hub.token = Some("hf_old".into());
    assert_eq!(refused(&place, "/api/", 401, &[]), HubProblem::Token);
    assert_eq!(refused(&place, "/api/", 404, &[]), HubProblem::NotFound { token: true });
    place.hub.token = Some("not\na header".into());
    assert!(matches!(place.problem(), HubProblem::Address { .. }));
    place.hub.endpoint = Some("no address".into());
    assert!(matches!(place.problem(), HubProblem::Address { .. }));
}

#[test]
fn a_busy_hub_is_asked_again_when_it_says_and_not_before() {
    let place = Place::new();
    place.server.fault("/api/", 1, Fault::Status(429, &[("Retry-After", "1")]));
    place.fault(TRANSFORMER, 1, Fault::Status(429, &[]));
    let begun = std::time::Instant::now();
    place.fetch().unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    place.server.fault("/api/", 9, Fault::Status(429, &[("RateLimit", "\"api\";r=0;t=3600")]));
    fs::remove_dir_all(place.root()).unwrap();
    place.server.asked();
    assert_eq!(place.problem(), HubProblem::RateLimited { wait: Some(3600) });
    assert_eq!(place.server.asked().len(), 1, "nobody waits for an hour");
}

#[test]
fn a_failing_hub_is_asked_again_a_few_times() {
    let place = Place::new();
    place.server.fault("/api/", 2, Fault::Status(500, &[]));
    place.fault(TRANSFORMER, 2, Fault::Status(503, &[]));
    place.fetch().unwrap();
    fs::remove_dir_all(place.root()).unwrap();
    place.server.fault("/api/", 3, Fault::Status(502, &[]));
    assert_eq!(place.problem(), HubProblem::Server { status: 502 });
    place.fault(TRANSFORMER, 3, Fault::Status(500, &[]));
    assert_eq!(place.problem(), HubProblem::Server { status: 500 });
}

#[test]
fn redirects_end_somewhere() {
    let place = Place::new();
    place.server.fault("/api/", 99, Fault::Redirect(format!("/api/models/{NAME}/revision/main")));
    assert!(matches!(place.problem(), HubProblem::Answer { .. }));
    let place = Place::new();
    place.server.fault("/api/", 1, Fault::Redirect("file:///etc/passwd".into()));
    assert!(matches!(place.problem(), HubProblem::Answer { .. }));
    let place = Place::new();
    place.server.fault("/api/", 1, Fault::Status(200, &[]));
    assert!(matches!(place.problem(), HubProblem::Answer { .. }), "no list");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_with_what_is_missing() {
    let place = Place::new();
    fs::create_dir_all(place.root().join("blobs")).unwrap();
    std::os::unix::fs::symlink("/dev/full", place.partial(TRANSFORMER)).unwrap();
    let folder = place.root().join("blobs");
    assert_eq!(place.problem(), HubProblem::DiskFull { folder, needed: SIZE as u64 });
    assert!(!place.blob(TRANSFORMER).exists());
}
