//! The cache is shared with Python's `huggingface_hub`: each reads what the other wrote.

use super::*;

/// Runs Python with the cache of a place, where the tests with a reference implementation run.
fn python(place: &Place, offline: bool, program: &str) -> Option<String> {
    let mut command = crate::support::require::python()?;
    command
        .env("HF_HOME", place.folder.path())
        .env("HF_ENDPOINT", &place.server.url)
        .env_remove("HF_HUB_CACHE");
    command.env("HF_HUB_DISABLE_XET", "1").env("HF_HUB_OFFLINE", if offline { "1" } else { "0" });
    command.env("NO_PROXY", "127.0.0.1").env("HF_HUB_DISABLE_TELEMETRY", "1");
    let output = command.args(["-c", program]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().trim().to_string())
}

#[test]
fn python_reads_the_cache_that_we_wrote() {
    let place = Place::new();
    place.fetch().unwrap();
    place.server.asked();
    let program = "from huggingface_hub import snapshot_download; print(snapshot_download('test/tiny'))";
    let Some(folder) = python(&place, true, program) else { return };
    assert_eq!(Path::new(&folder), place.snapshot().canonicalize().unwrap());
    let program = format!(
        "from huggingface_hub import hf_hub_download as get
for name in {:?}: print(open(get('test/tiny', name), 'rb').read().hex())",
        needed()
    );
    let text = python(&place, true, &program).unwrap();
    for (name, read) in needed().into_iter().zip(text.lines()) {
        let expected: String = place.server.state().files[name].iter().map(|b| format!("{b:02x}")).collect();
        assert!(read == expected, "{name}");
    }
    assert_eq!(place.server.asked().len(), 0);
    let program = "from huggingface_hub import scan_cache_dir as scan; info = scan(); \
                   print(len(info.warnings), *sorted(f.file_name for f in list(list(info.repos)[0].revisions)[0].files))";
    let text = python(&place, true, program).unwrap();
    assert!(text.starts_with("0 ") && text.split(' ').count() == 1 + needed().len(), "{text}");
    // With a network it fetches what we left, and nothing that we brought.
    place.server.asked();
    python(&place, false, "from huggingface_hub import snapshot_download; snapshot_download('test/tiny')")
        .unwrap();
    let fetched = place.server.asked().into_iter().filter(|asked| asked.line.starts_with("GET /test/"));
    let fetched: Vec<_> = fetched.map(|asked| asked.line).collect();
    assert!(!fetched.is_empty(), "there was more");
    assert!(
        !needed().iter().any(|name| fetched.iter().any(|line| line.contains(&format!("/{name} ")))),
        "{fetched:?}"
    );
}

#[test]
fn we_read_the_cache_that_python_wrote() {
    let place = Place::new();
    let program = "from huggingface_hub import snapshot_download; snapshot_download('test/tiny')";
    if python(&place, false, program).is_none() {
        return;
    }
    place.server.asked();
    let parts = place.fetch().unwrap();
    assert_eq!(parts.transformer, place.snapshot().join(TRANSFORMER));
    assert_eq!(place.server.asked().len(), 1, "the list, and no file");
    let mut hub = place.hub.clone();
    hub.offline = true;
    assert_eq!(fetch(&hub, NAME).unwrap(), parts);
    assert_eq!(place.server.asked().len(), 0);
}
