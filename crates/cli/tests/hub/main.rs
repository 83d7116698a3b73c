//! Models by their names, against a hub on the loopback.

mod binary;
mod faults;
mod python;
mod server;
#[path = "../../../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tch_flux::generation::{PartOverrides, Parts};
use tch_flux::hub::{Event, Hub, Repository};
use tch_flux::{Error, HubProblem, Result};

use server::{COMMIT, Fault, NAME, Server};

const INDEX: &str = "text_encoder_2/model.safetensors.index.json";
const TRANSFORMER: &str = "flux1-dev.safetensors";

/// The names of an official repository, with a few bytes in each file; some are large for this hub.
fn official() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in [
        ".gitattributes",
        "README.md",
        "dev_grid.jpg",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder_2/config.json",
        "text_encoder_2/model-00001-of-00002.safetensors",
        "text_encoder_2/model-00002-of-00002.safetensors",
        "text_encoder_2/model-00003-of-00002.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/vocab.json",
        "tokenizer_2/spiece.model",
        "tokenizer_2/tokenizer.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "ae.safetensors",
        TRANSFORMER,
    ] {
        files.insert(name.to_string(), bytes(name, 100));
    }
    for (name, class) in [
        ("model_index.json", "FluxPipeline"),
        ("scheduler/scheduler_config.json", "FlowMatchEulerDiscreteScheduler"),
    ] {
        files.insert(name.into(), format!(r#"{{"_class_name": "{class}"}}"#).into());
    }
    files.insert("ae.safetensors".into(), bytes("ae", 20_000));
    files.insert(TRANSFORMER.into(), bytes("flux", 3_000_000));
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    files.insert(INDEX.into(), index.into());
    files
}

fn bytes(seed: &str, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * i / 7 + seed.len() * i) as u8 ^ seed.as_bytes()[i % seed.len()]).collect()
}

/// What a run needs of them.
const NEEDED: [&str; 14] = [
    "ae.safetensors",
    TRANSFORMER,
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model-00001-of-00002.safetensors",
    "text_encoder_2/model-00002-of-00002.safetensors",
    INDEX,
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "tokenizer_2/tokenizer.json",
    "vae/config.json",
];

/// A server and a cache.
struct Place {
    server: Server,
    folder: tempfile::TempDir,
    hub: Hub,
}

impl Place {
    fn new() -> Self {
        Self::with(official())
    }

    fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let (server, folder) = (Server::start(files), tempfile::tempdir().unwrap());
        let mut hub = Hub::new(folder.path().join("hub"));
        hub.endpoint = Some(server.url.clone());
        (hub.retries, hub.timeout) = (2, Duration::from_secs(5));
        Self { server, folder, hub }
    }

    fn root(&self) -> PathBuf {
        self.hub.cache.join("models--test--tiny")
    }

    fn snapshot(&self) -> PathBuf {
        self.root().join("snapshots").join(COMMIT)
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.root().join("blobs").join(self.server.hash(name))
    }

    fn partial(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("{}.incomplete", self.blob(name).display()))
    }

    fn fetch(&self) -> Result<Parts> {
        fetch(&self.hub, NAME)
    }

    fn problem(&self) -> HubProblem {
        problem(self.fetch())
    }

    /// What of a file was asked of the second server: the first byte each time.
    fn offsets(&self, name: &str) -> Vec<usize> {
        let question = format!("GET /store/{} ", self.server.hash(name));
        let asked = self.server.asked().into_iter().filter(|asked| asked.line.starts_with(&question));
        let from =
            |range: &String| range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap();
        asked.map(|asked| asked.headers.get("range").map_or(0, from)).collect()
    }

    /// A fault of the server that has the bytes of a large file.
    fn fault(&self, name: &str, times: usize, fault: Fault) {
        self.server.fault(&format!("GET /store/{} ", self.server.hash(name)), times, fault);
    }

    fn is_right(&self, name: &str) -> bool {
        fs::read(self.snapshot().join(name)).is_ok_and(|bytes| bytes == self.server.state().files[name])
    }
}

fn fetch(hub: &Hub, name: &str) -> Result<Parts> {
    let repository: Repository = name.parse()?;
    hub.fetch(&repository, PartOverrides::default(), &mut |_| ControlFlow::Continue(()))
}

fn problem(result: Result<Parts>) -> HubProblem {
    match result {
        Err(Error::Hub { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

/// Every file under a folder by its name there, but for locks.
fn files_in(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, at: &str, names: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            let name = format!("{at}{}", entry.file_name().to_str().unwrap());
            match entry.file_type().unwrap().is_dir() {
                true => walk(&entry.path(), &format!("{name}/"), names),
                false => names.push(name),
            }
        }
    }
    let mut names = Vec::new();
    walk(folder, "", &mut names);
    names.sort();
    names
}

fn needed() -> Vec<&'static str> {
    let mut names = NEEDED.to_vec();
    names.sort();
    names
}

#[test]
fn what_a_run_needs_is_fetched_and_no_more_in_pythons_layout() {
    let place = Place::new();
    let parts = place.fetch().unwrap();
    assert_eq!(parts, Parts::find(place.snapshot()).unwrap());
    assert_eq!(files_in(&place.snapshot()), needed());
    assert!(needed().iter().all(|name| place.is_right(name)));
    let mut blobs: Vec<_> = needed().iter().map(|name| place.server.hash(name)).collect();
    blobs.sort();
    assert_eq!(files_in(&place.root().join("blobs")), blobs);
    assert_eq!(fs::read_to_string(place.root().join("refs/main")).unwrap(), COMMIT);
    if cfg!(unix) {
        let link = fs::read_link(place.snapshot().join("tokenizer/vocab.json")).unwrap();
        let hash = place.server.hash("tokenizer/vocab.json");
        assert_eq!(link, Path::new("../../../blobs").join(hash));
    }
    let asked = place.server.asked();
    assert!(asked.iter().all(|asked| asked.line.starts_with("GET ")), "the list says all that is needed");
    assert_eq!(asked.iter().filter(|asked| asked.line.contains("/resolve/")).count(), needed().len());
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let place = Place::new();
    place.fetch().unwrap();
    place.server.asked();
    place.fetch().unwrap();
    assert_eq!(place.server.asked().len(), 1, "a branch: whether it is still this commit");
    fetch(&place.hub, &format!("{NAME}@{COMMIT}")).unwrap();
    assert_eq!(place.server.asked().len(), 0, "a commit does not change");
    fetch(&place.hub, &format!("{NAME}@v1")).unwrap();
    assert_eq!(fs::read_to_string(place.root().join("refs/v1")).unwrap(), COMMIT);
}

#[test]
fn of_a_newer_commit_only_what_changed_is_fetched() {
    let place = Place::new();
    place.fetch().unwrap();
    place.server.asked();
    let newer = "f".repeat(40);
    {
        let mut state = place.server.state();
        state.commit = newer.clone();
        state.files.insert("ae.safetensors".into(), bytes("newer", 30_000));
    }
    place.fault("ae.safetensors", 3, Fault::Cut(0));
    place.fetch().unwrap_err();
    assert_eq!(fs::read_to_string(place.root().join("refs/main")).unwrap(), COMMIT, "not before it is whole");
    let mut offline = place.hub.clone();
    offline.offline = true;
    assert!(fetch(&offline, NAME).unwrap().transformer.starts_with(place.snapshot()));
    place.fetch().unwrap();
    assert_eq!(fs::read_to_string(place.root().join("refs/main")).unwrap(), newer);
    let parts = fetch(&offline, NAME).unwrap();
    assert_eq!(fs::read(&parts.autoencoder).unwrap(), bytes("newer", 30_000));
    assert_eq!(place.offsets(TRANSFORMER), Vec::<usize>::new());
}

#[test]
fn a_part_that_is_named_is_not_fetched() {
    let place = Place::new();
    let own = PartOverrides {
        transformer: Some("mine.safetensors".into()),
        t5: Some("mine".into()),
        ..PartOverrides::default()
    };
    let repository: Repository = NAME.parse().unwrap();
    let parts = place.hub.fetch(&repository, own, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(parts.transformer, Path::new("mine.safetensors"));
    assert_eq!(parts.autoencoder, place.snapshot().join("ae.safetensors"));
    assert!(
        files_in(&place.snapshot()).iter().all(|name| name != TRANSFORMER && !name.contains("encoder_2"))
    );
}

#[test]
fn of_redux_both_models_are_fetched_and_found_again_without_the_hub() {
    let needed =
        ["flux1-redux-dev.safetensors", "image_encoder/config.json", "image_encoder/model.safetensors"];
    let others = ["README.md", "image_embedder/config.json"];
    let files = needed.into_iter().chain(others).map(|name| (name.to_string(), bytes(name, 3000)));
    let place = Place::with(files.collect());
    let repository: Repository = NAME.parse().unwrap();
    let fetch = |hub: &Hub| hub.fetch_redux(&repository, &mut |_| ControlFlow::Continue(())).unwrap();
    let own = fetch(&place.hub);
    assert_eq!(own.redux, Some(place.snapshot().join("flux1-redux-dev.safetensors")));
    assert_eq!(own.image_encoder, Some(place.snapshot().join("image_encoder")));
    assert_eq!(files_in(&place.snapshot()), needed);
    let mut offline = place.hub.clone();
    offline.offline = true;
    assert_eq!(fetch(&offline), own);
}

#[test]
fn a_repository_that_lacks_a_part_is_refused_before_anything_is_fetched() {
    let mut files = official();
    files.retain(|name, _| !name.starts_with("text_encoder/"));
    let place = Place::with(files);
    let text = place.fetch().unwrap_err().to_string();
    assert_eq!(text, "test/tiny: no CLIP text model; expected text_encoder");
    assert_eq!(place.server.asked().len(), 1);
}

#[test]
fn an_index_that_leads_out_of_its_folder_is_refused() {
    let mut files = official();
    files.insert(INDEX.into(), br#"{"weight_map": {"a": "../../escaped.safetensors"}}"#.to_vec());
    let place = Place::with(files);
    assert!(place.fetch().unwrap_err().to_string().contains("no plain name"));
    let mut files = official();
    files.insert(INDEX.into(), br#"{"weight_map": {"a": "missing.safetensors"}}"#.to_vec());
    assert_eq!(Place::with(files).problem(), HubProblem::NoFile);
}

#[test]
fn a_name_that_leads_out_of_the_cache_is_refused_with_the_whole_list() {
    for name in ["../../escaped.safetensors", "/tmp/escaped.safetensors", "flux1-/../../../x.safetensors"] {
        let mut files = official();
        files.insert(name.into(), b"evil".to_vec());
        let place = Place::with(files);
        assert_eq!(place.problem(), HubProblem::UnsafeName { name: name.into() });
        assert_eq!(fs::read_dir(place.folder.path()).unwrap().count(), 0, "nothing is written");
    }
}

#[test]
fn a_name_is_an_owner_and_a_model_and_nothing_that_leads_out_of_the_cache() {
    for good in ["a/b", "black-forest-labs/FLUX.1-dev", "a/b@refs/pr/1", "a/b@v1.0+x", "_a/b_c"] {
        let repository: Repository = good.parse().unwrap();
        assert_eq!(repository.to_string(), good);
    }
    assert_eq!("a/b@main".parse::<Repository>().unwrap(), "a/b".parse().unwrap());
    for bad in [
        "a", "a/b/c", "../b", "./b", "a/..", "/b", "a/", "a/b@", "a/b@../x", "a/b@/x", "a--b/c", "a/b c",
        "-a/b", "a/b@x y",
    ] {
        assert!(bad.parse::<Repository>().is_err(), "{bad}");
    }
}

#[test]
fn offline_opens_no_connection_and_names_what_is_missing() {
    let mut place = Place::new();
    place.hub.offline = true;
    let error = place.fetch().unwrap_err().to_string();
    assert!(error.starts_with("test/tiny: not in the cache") && error.contains("HF_HUB_OFFLINE"), "{error}");
    place.hub.offline = false;
    let parts = place.fetch().unwrap();
    place.hub.offline = true;
    place.server.asked();
    assert_eq!(place.fetch().unwrap(), parts);
    for (name, named) in [
        ("text_encoder_2/model-00002-of-00002.safetensors", "model-00002-of-00002"),
        ("text_encoder/model.safetensors", "text_encoder: *.safetensors"),
        (TRANSFORMER, "flux1-*.safetensors or flux1-*.sft or flux1-*.gguf or transformer"),
    ] {
        fs::remove_file(place.snapshot().join(name)).unwrap();
        let error = place.fetch().unwrap_err();
        assert!(matches!(error, Error::Hub { problem: HubProblem::Offline { .. }, .. }), "{error:?}");
        assert!(error.to_string().contains(named), "{error}");
    }
    assert_eq!(place.server.asked().len(), 0);
}

#[test]
fn without_a_network_what_the_cache_holds_is_taken_and_that_is_said() {
    let mut place = Place::new();
    let parts = place.fetch().unwrap();
    // Nobody listens on this port.
    place.hub.endpoint = Some("http://127.0.0.1:9".into());
    let repository: Repository = NAME.parse().unwrap();
    let mut events = Vec::new();
    let fetched = place.hub.fetch(&repository, PartOverrides::default(), &mut |event| {
        events.push(format!("{event:?}"));
        ControlFlow::Continue(())
    });
    assert_eq!(fetched.unwrap(), parts);
    assert!(events.len() == 1 && events[0].starts_with("Stale"), "{events:?}");
    fs::remove_dir_all(&place.hub.cache).unwrap();
    assert!(matches!(place.problem(), HubProblem::Network { .. }));
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let mut place = Place::new();
    place.hub.token = Some("hf_secret".into());
    place.server.fault("GET /api/", 1, Fault::Redirect(format!("/api/models/{NAME}/revision/main")));
    place.fetch().unwrap();
    let asked = place.server.asked();
    assert!(asked.iter().any(|asked| !asked.is_hub), "a large file came from the second server");
    for asked in asked {
        let sent = asked.headers.get("authorization").map(String::as_str);
        assert_eq!(sent, asked.is_hub.then_some("Bearer hf_secret"), "{asked:?}");
    }
    assert!(!format!("{:?}", place.hub).contains("secret"));
}

#[test]
fn a_list_without_sizes_and_hashes_is_made_up_for_by_the_files_headers() {
    let place = Place::new();
    place.server.state().says_blobs = false;
    place.fault(TRANSFORMER, 1, Fault::Corrupt);
    assert!(matches!(place.problem(), HubProblem::WrongHash { .. }));
    place.fetch().unwrap();
    assert!(needed().iter().all(|name| place.is_right(name)));
    let heads = place.server.asked().into_iter().filter(|asked| asked.line.starts_with("HEAD ")).count();
    assert!(heads >= needed().len(), "{heads}");
}

#[test]
fn every_file_is_told_from_its_beginning_to_its_end() {
    let place = Place::new();
    let repository: Repository = NAME.parse().unwrap();
    let mut told: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    let fetched = place.hub.fetch(&repository, PartOverrides::default(), &mut |event| {
        if let Event::File { name, have, size } = event {
            told.entry(name.into()).or_default().push((have, size));
        }
        ControlFlow::Continue(())
    });
    fetched.unwrap();
    assert_eq!(told.keys().map(String::as_str).collect::<Vec<_>>(), needed());
    for (name, told) in told {
        let size = place.server.state().files[&name].len() as u64;
        assert_eq!((told[0], told[told.len() - 1]), ((0, size), (size, size)));
        assert!(told.is_sorted(), "{name}: {told:?}");
    }
}

#[test]
fn what_came_before_a_cancel_is_gone_on_with() {
    let place = Place::new();
    let repository: Repository = NAME.parse().unwrap();
    let stopped = place.hub.fetch(&repository, PartOverrides::default(), &mut |event| match event {
        Event::File { name: TRANSFORMER, have: 1.., .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    let came = fs::metadata(place.partial(TRANSFORMER)).unwrap().len() as usize;
    assert!(came > 0 && !place.blob(TRANSFORMER).exists() && !place.snapshot().join(TRANSFORMER).exists());
    place.server.asked();
    place.fetch().unwrap();
    assert_eq!(place.offsets(TRANSFORMER), [came]);
    assert!(place.is_right(TRANSFORMER));
}

#[test]
fn without_symbolic_links_the_snapshot_has_the_files() {
    let mut place = Place::new();
    place.hub.symlinks = false;
    let parts = place.fetch().unwrap();
    assert!(fs::symlink_metadata(&parts.transformer).unwrap().is_file());
    assert!(needed().iter().all(|name| place.is_right(name)));
    place.server.asked();
    assert_eq!(place.fetch().unwrap(), parts);
    assert_eq!(place.server.asked().len(), 1);
}

#[test]
fn several_at_once_fetch_every_file_once() {
    let place = Place::new();
    place.fault(TRANSFORMER, 1, Fault::Cut(1_000_000));
    std::thread::scope(|scope| {
        for fetched in [(); 4].map(|()| scope.spawn(|| place.fetch())) {
            fetched.join().unwrap().unwrap();
        }
    });
    assert_eq!(
        place.offsets(TRANSFORMER),
        [0, 1_000_000],
        "the locks are of open files, so threads are as processes"
    );
    assert!(needed().iter().all(|name| place.is_right(name)));
    let left = files_in(&place.root());
    assert!(!left.iter().any(|name| name.ends_with(".tmp") || name.ends_with(".incomplete")), "{left:?}");
}
