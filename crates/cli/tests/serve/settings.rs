//! Settings: flags, then the environment, then a file, then what is built in.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use crate::client::{generate, get, send};
use crate::life::Process;
use crate::small;

pub(crate) fn run(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-flux"));
    command.arg("serve").args(arguments).current_dir(folder).envs(variables.iter().copied());
    command.output().unwrap()
}

fn printed(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> toml::Table {
    let output = run(folder, &[arguments, &["--print-config"]].concat(), variables);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

#[test]
fn flags_come_before_the_environment_and_that_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = "port = 1\nqueue = 1\ngrace = 1.5\nnumerics = \"exact\"\ncors-origin = [\"https://a\", \"https://b\"]\n";
    std::fs::write(folder.path().join("serve.toml"), file).unwrap();
    let all = printed(
        folder.path(),
        &["--config", "serve.toml", "--port", "3"],
        &[("TCH_FLUX_SERVE_PORT", "2"), ("TCH_FLUX_SERVE_QUEUE", "2")],
    );
    assert_eq!(all["port"].as_integer(), Some(3), "the flag");
    assert_eq!(all["queue"].as_integer(), Some(2), "the environment");
    assert_eq!(all["grace"].as_float(), Some(1.5), "the file");
    assert_eq!(all["numerics"].as_str(), Some("exact"));
    assert_eq!(all["cors-origin"].as_array().unwrap().len(), 2);
    assert_eq!(all["host"].as_str(), Some("127.0.0.1"), "built in");
    // The file may be named by the environment, and lists too.
    let all = printed(
        folder.path(),
        &[],
        &[
            ("TCH_FLUX_SERVE_CONFIG", "serve.toml"),
            ("TCH_FLUX_SERVE_DEVICE", "cpu,cpu"),
            ("TCH_FLUX_SERVE_KEEP_QUANTIZED", "true"),
        ],
    );
    assert_eq!((all["port"].as_integer(), all["device"].as_array().unwrap().len()), (Some(1), 2));
    assert_eq!(all["keep-quantized"].as_bool(), Some(true));
}

#[test]
fn what_is_printed_can_be_read_again_and_keeps_the_key_to_itself() {
    let folder = tempfile::tempdir().unwrap();
    let arguments =
        ["--api-key", "sesame", "--model", "somewhere", "--kind", "bf16", "--lora", "a:0.5", "--log-json"];
    let output = run(folder.path(), &[&arguments[..], &["--print-config"]].concat(), &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("sesame") && text.contains("api-key = \"redacted\""), "{text}");
    std::fs::write(folder.path().join("again.toml"), text.replace("redacted", "sesame")).unwrap();
    let again = run(folder.path(), &["--config", "again.toml", "--print-config"], &[]);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), text);
}

#[test]
fn settings_that_are_none_are_refused_with_the_nearest_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |file: &str| {
        std::fs::write(folder.path().join("serve.toml"), file).unwrap();
        let output = run(folder.path(), &["--config", "serve.toml", "--print-config"], &[]);
        assert!(!output.status.success(), "{file}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused("max-json-byte = 5");
    assert!(said.contains("line 1: max-json-byte:") && said.contains("`max-json-bytes`"), "{said}");
    assert!(refused("port = \"x\"").contains("serve.toml"));
    assert!(refused("port = 70000").contains("port"));
    assert!(refused("port = ").contains("serve.toml"));
    assert!(refused("numerics = \"quick\"").contains("quick"));
    assert!(refused("print-config = true").contains("print-config"));
    let missing = run(folder.path(), &["--config", "none.toml"], &[]);
    assert!(String::from_utf8(missing.stderr).unwrap().contains("none.toml"));
    for (name, value) in [
        ("host", "nowhere"),
        ("grace", "-1"),
        ("device", "tpu"),
        ("vae-tile", "1"),
        ("log-level", "x=loud"),
        ("api-key", ""),
    ] {
        let output = run(folder.path(), &[&format!("--{name}={value}")], &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(&format!("--{name}")), "{name}: {said}");
    }
}

/// What a setting that cannot be right is answered with: as a flag, as a variable, and as a key of a file.
#[test]
fn errors_name_what_was_used_and_what_would_work() {
    let folder = tempfile::tempdir().unwrap();
    let said = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = run(folder.path(), arguments, variables);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {variables:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.stdout.is_empty() && !text.contains("panicked"), "{text}");
        text
    };
    let mut before = "";
    for (name, value, hint) in [
        ("threads", "0", "leave it out"),
        ("threads", "100000", "1024"),
        ("threads", "-1", "invalid"),
        ("log-level", "loud", "off, error, warn, info, debug, trace"),
        ("log-level", "verbose", "`debug`"),
        ("log-level", "info,tch_flux::engin=debug", "`tch_flux::engine`"),
        ("host", "http://127.0.0.1:9000", "port 9000"),
        ("host", "flux.example", "--allowed-host"),
        ("port", "70000", "65535"),
        ("cors-origin", "https://example.org/", "writes https://example.org"),
        ("cors-origin", "https://a.example,Example.org", "https://example.org"),
        ("cors-origin", "null", "`*`"),
        ("allowed-host", "https://flux.example/", "call it flux.example"),
        ("allowed-host", "*.flux.example", "patterns"),
        ("public-url", "pictures.example", "https://pictures.example"),
        ("public-url", "https://pictures.example/?a=b", "as in https://pictures.example/"),
        ("grace", "soon", "500ms"),
        ("grace", "-1", "500ms"),
        ("job-timeout", "0", "in time"),
        ("url-lifetime", "1e400", "500ms"),
        ("body-timeout", "999999999h", "hundred years"),
        ("max-json-bytes", "64M", "64MiB"),
        ("max-edit-bytes", "20000000000GiB", "5GB"),
        ("url-bytes", "0", "5GB"),
        ("max-image-pixels", "many", "32MP"),
        ("max-connections", "0", "from 1"),
        ("max-connections", "18446744073709551615", "1048576"),
        ("queue", "1.5", "invalid"),
        ("vae-tile", "1", "64"),
        ("device", "tpu", "cuda:N"),
        ("api-key", "", "empty"),
        ("api-key", " sesame", "space"),
        ("model-alias", "a,,b", "empty"),
        ("model-name", "a\nb", "lines"),
        ("threads", "auto", "whole number"),
        ("port", "http", "from 0 to 65535"),
        ("log-level", "info,debug", "two levels"),
        ("cors-origin", "*,https://example.org", "no effect"),
        ("cors-origin", "https://a.example;https://b.example", "commas"),
        ("api-key", "Bearer sesame", "behind `Bearer`"),
        ("max-json-bytes", "1", "at least 64"),
        ("max-edit-bytes", "1", "at least 1024"),
        ("max-json-bytes", "1024.5", "whole"),
        ("max-image-bytes", "1GiB", "max-edit-bytes"),
        ("max-edit-bytes", "1GiB", "max-upload-bytes"),
        ("max-image-pixels", "0", "64 by 64"),
        ("max-answer-bytes", "1", "at least 65536"),
        ("job-timeout", "0.01ms", "in time"),
        ("device", "gpu", "a GPU is cuda"),
    ] {
        let text = said(&[&format!("--{name}={value}")], &[]);
        assert!(text.contains(&format!("--{name}")) && text.contains(hint), "{name} {value}: {text}");
        // Each is a process of its own: once a setting in the two other ways is enough.
        if std::mem::replace(&mut before, name) == name {
            continue;
        }
        let variable = format!("TCH_FLUX_SERVE_{}", name.replace('-', "_").to_uppercase());
        let text = said(&[], &[(&variable, value)]);
        assert!(text.contains(&variable) && text.contains(hint), "{variable} {value}: {text}");
        assert!(!text.contains(&format!("--{name}")), "{text}");
        let list = ["cors-origin", "allowed-host", "device", "model-alias"].contains(&name);
        let values: Vec<_> = value.split(',').map(|value| format!("{value:?}")).collect();
        let value = match value.parse::<i64>() {
            Ok(number) => number.to_string(),
            Err(_) if list => format!("[{}]", values.join(", ")),
            Err(_) => format!("{value:?}"),
        };
        std::fs::write(folder.path().join("serve.toml"), format!("# A comment.\n\n{name} = {value}\n"))
            .unwrap();
        let text = said(&["--config", "serve.toml"], &[]);
        assert!(text.contains(&format!("serve.toml, line 3: {name}")), "{name} {value}: {text}");
        // Of a wrong type, the file's own words are enough.
        let typed = ["threads", "port", "queue", "max-connections"].contains(&name);
        assert!(text.contains(hint) || typed, "{name} {value}: {text}");
    }
    // What is nearer is what counts, and what is named.
    std::fs::write(folder.path().join("serve.toml"), "threads = 0\n").unwrap();
    let config = ["--config", "serve.toml"];
    let text = said(&config, &[("TCH_FLUX_SERVE_THREADS", "0")]);
    assert!(text.contains("TCH_FLUX_SERVE_THREADS") && !text.contains("serve.toml"), "{text}");
    let text = said(&[&config[..], &["--threads", "0"]].concat(), &[("TCH_FLUX_SERVE_THREADS", "1")]);
    assert!(text.contains("--threads"), "{text}");
    std::fs::write(folder.path().join("serve.toml"), "api-key = \"a\"\napi-key-file = \"b\"\n").unwrap();
    let text = said(&config, &[]);
    assert!(text.contains("line 1: api-key") && text.contains("line 2: api-key-file"), "{text}");
}

#[test]
fn variables_that_are_none_are_refused_with_the_nearest_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, near) in [
        ("TCH_FLUX_SERVE_QUEU", "`TCH_FLUX_SERVE_QUEUE`"),
        ("TCH_FLUX_SERVE_APIKEY", "`TCH_FLUX_SERVE_API_KEY`"),
        ("TCH_FLUX_SERVE_api_key", "`TCH_FLUX_SERVE_API_KEY`"),
        ("TCH_FLUX_SERVE_MAX-CONNECTIONS", "`TCH_FLUX_SERVE_MAX_CONNECTIONS`"),
        ("TCH_FLUX_SERVE_PORT_8000_TCP", "enableServiceLinks"),
        ("TCH_FLUX_SERVE_SERVICE_HOST", "enableServiceLinks"),
        ("TCH_FLUX_SERVE_", "no such variable"),
        ("TCH_FLUX_SERVE_KEY", "`TCH_FLUX_SERVE_API_KEY`"),
        ("TCH_FLUX_SERVE_VAE", "`TCH_FLUX_SERVE_AUTOENCODER`"),
        ("TCH_FLUX_SERVE_CORS", "`TCH_FLUX_SERVE_CORS_ORIGIN`"),
        ("TCH_FLUX_SERV_PORT", "`TCH_FLUX_SERVE_PORT`"),
        ("TCHFLUX_SERVE_API_KEY", "`TCH_FLUX_SERVE_API_KEY`"),
        ("tch_flux_serve_queue", "`TCH_FLUX_SERVE_QUEUE`"),
    ] {
        for more in [&[][..], &["--print-config"]] {
            let output = run(folder.path(), more, &[(name, "1")]);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(text.contains(&format!("{name}: ")) && text.contains(near), "{text}");
        }
    }
    // What is not the server's own is none of its business.
    printed(
        folder.path(),
        &[],
        &[
            ("TCH_FLUX_SERVICE_HOST", "10.0.0.1"),
            ("TCH_FLUX_SERVER_PORT", "tcp://10.0.0.1:80"),
            ("TCH_FLUX_OTHER", "1"),
            ("TCH_FLUX_PORT", "1"),
        ],
    );
    // Nor is there a neighbour where nothing is like it.
    let output = run(folder.path(), &[], &[("TCH_FLUX_SERVE_STEPS", "4")]);
    assert!(!String::from_utf8(output.stderr).unwrap().contains("meant"));
}

#[test]
fn units_are_read_wherever_a_setting_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = "max-edit-bytes = \"64MB\"\njob-timeout = \"5m\"\nurl-bytes = 1048576\nbody-timeout = 90\n";
    std::fs::write(folder.path().join("serve.toml"), file).unwrap();
    let all = printed(
        folder.path(),
        &[
            "--config",
            "serve.toml",
            "--grace",
            "1h30m",
            "--max-json-bytes",
            "2 MiB",
            "--header-timeout=500ms",
        ],
        &[("TCH_FLUX_SERVE_URL_LIFETIME", "2h"), ("TCH_FLUX_SERVE_MAX_IMAGE_PIXELS", "16MP")],
    );
    let whole = |name: &str| all[name].as_integer().unwrap();
    let time = |name: &str| all[name].as_float().unwrap();
    assert_eq!((whole("max-edit-bytes"), whole("max-json-bytes")), (64_000_000, 2 << 20));
    assert_eq!((whole("url-bytes"), whole("max-image-pixels")), (1 << 20, 16_000_000));
    assert_eq!((time("job-timeout"), time("grace"), time("url-lifetime")), (300.0, 5400.0, 7200.0));
    assert_eq!((time("header-timeout"), time("body-timeout")), (0.5, 90.0));
    // Whatever the help shows as a default can be said.
    let help = Command::new(env!("CARGO_BIN_EXE_tch-flux")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut tried = 0;
    let mut lines = help.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(flag) = line.split(' ').next().filter(|word| word.starts_with("--")) else { continue };
        if !(line.contains("<TIME>") || line.contains("<SIZE>") || line.contains("<PIXELS>")) {
            continue;
        }
        let about: String = lines.by_ref().take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        let Some(default) = about.split("[default: ").nth(1).and_then(|rest| rest.split(']').next()) else {
            continue;
        };
        let name = flag.trim_start_matches('-');
        let by_flag = printed(folder.path(), &[flag, default], &[]);
        let built_in = printed(folder.path(), &[], &[]);
        assert_eq!(by_flag[name], built_in[name], "{flag} {default}");
        tried += 1;
    }
    assert!(tried >= 16, "{tried}: {help}");
}

#[test]
fn a_setting_does_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "sesame\n").unwrap();
    let process = Process::ready(&[
        "--api-key-file",
        key.to_str().unwrap(),
        "--model-name",
        "mine",
        "--model-alias",
        "yours",
        "--public-url",
        "https://pictures.example/",
        "--max-json-bytes",
        "1000",
        "--threads",
        "1",
    ]);
    let ask = |method: &str, path: &str, body: &str| {
        let headers = [("authorization", "Bearer sesame"), ("content-type", "application/json")];
        send(process.at, method, path, &headers, body.as_bytes())
    };
    get(process.at, "/v1/models").is_error(401, "");
    assert_eq!(ask("GET", "/v1/models", "").json()["data"][0]["id"], "mine");
    assert_eq!(ask("GET", "/v1/models/yours", "").status, 200);
    ask("GET", "/v1/models/dall-e-3", "").is_error(404, "model");
    let request = crate::with(small(1), "response_format", json!("url")).to_string();
    let answer = ask("POST", "/v1/images/generations", &request).json();
    let url = answer["data"][0]["url"].as_str().unwrap();
    assert!(url.starts_with("https://pictures.example/v1/images/"), "{url}");
    ask("POST", "/v1/images/generations", &" ".repeat(1001)).is_error(413, "");
}

#[test]
fn several_workers_draw_the_same_pictures() {
    let process = Process::ready(&["--device", "cpu", "--device", "cpu"]);
    let alone = generate(crate::shared(), &small(1)).pictures();
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..4).map(|_| scope.spawn(|| generate(process.at, &small(1)).pictures())).collect();
        asked.into_iter().for_each(|asked| assert_eq!(asked.join().unwrap(), alone));
    });
}

/// A value below zero is no flag, and a flag of another program has its neighbour here.
#[test]
fn flags_and_their_values_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let said = |arguments: &[&str]| {
        let output = run(folder.path(), arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for flag in ["--port", "--threads", "--queue", "--drain-notice", "--url-count", "--max-json-bytes"] {
        let text = said(&[flag, "-64"]);
        assert!(text.contains("invalid value '-64'") && text.contains(flag), "{flag}: {text}");
    }
    for (flag, meant) in [
        ("--listen", "--host"),
        ("--bind", "--host"),
        ("--workers", "--threads"),
        ("--api_key", "--api-key"),
        ("--Port", "--port"),
        ("--cors", "--cors-origin"),
        ("--token", "--api-key"),
        ("--quantise", "--quantize"),
        ("-p", "--port"),
    ] {
        let text = said(&[flag, "x"]);
        assert!(text.contains(&format!("'{meant}'")), "{flag}: {text}");
    }
    assert!(!said(&["--reload"]).contains("similar"));
}

/// What a file of settings may get wrong is said in the words of its user.
#[test]
fn values_of_other_kinds_are_named_without_the_names_of_types() {
    let folder = tempfile::tempdir().unwrap();
    for (file, wanted) in [
        ("port = \"80\"", "whole number from 0 to 65535"),
        ("queue = 1.5", "expected a whole number"),
        ("cors-origin = \"https://example.org\"", "it is a list: cors-origin = [\"https://example.org\"]"),
        ("host = 1", "expected a text"),
        ("log-json = 1", "expected true or false"),
        ("[serve]\nport = 80", "no table"),
        ("vae = \"x\"", "`autoencoder`"),
        ("max-json-bytes = 1500.5", "whole number of bytes"),
    ] {
        std::fs::write(folder.path().join("serve.toml"), file).unwrap();
        let output = run(folder.path(), &["--config", "serve.toml"], &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("serve.toml, line 1: ") && text.contains(wanted), "{file}: {text}");
        assert!(!["usize", "u16", "sequence"].iter().any(|word| text.contains(word)), "{text}");
    }
}

/// What is not there is said by its setting, and before the server says that it listens.
#[test]
fn files_that_are_missing_are_named_with_their_settings() {
    let folder = tempfile::tempdir().unwrap();
    for flag in [
        "model",
        "transformer",
        "base",
        "autoencoder",
        "clip",
        "t5",
        "clip-tokenizer",
        "t5-tokenizer",
        "depth-model",
        "preview-decoder",
        "preview-factors",
        "lora",
        "controlnet",
        "ip-adapter",
        "ip-image-encoder",
        "redux-model",
        "image-encoder",
    ] {
        let output = run(folder.path(), &["--port=0", &format!("--{flag}"), "nowhere"], &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{flag}: {text}");
        assert!(text.contains(&format!("--{flag}: ")) && text.contains("nowhere"), "{flag}: {text}");
    }
    // What makes previews is read before the first request asks for one.
    std::fs::write(folder.path().join("factors.json"), "{}").unwrap();
    let output = run(folder.path(), &["--port=0", "--preview-factors", "factors.json"], &[]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && text.contains("factors.json"), "{text}");
    // Two servers cannot have one port.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(folder.path(), &["--port", &port], &[]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--port: ") && text.contains("another program"), "{text}");
}

/// A key's file may begin as Windows' editors begin one, and is text in UTF-8.
#[test]
fn a_file_with_the_key_is_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, "\u{feff}sesame\r\n").unwrap();
    printed(folder.path(), &["--api-key-file", "key"], &[]);
    for bytes in [&b"\xff\xfes\0e\0"[..], b"\xef\xbb\xbf", b"a\nb\n"] {
        std::fs::write(&path, bytes).unwrap();
        let output = run(folder.path(), &["--api-key-file", "key"], &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("--api-key-file"), "{text}");
    }
}
