//! Bodies that are no requests.

use serde_json::json;

use crate::client::{GENERATIONS, JSON, generate, post, send};
use crate::{CIRCLE, is_well, shared};

fn is_refused(body: impl AsRef<[u8]>, param: &str, code: &str) {
    let error = post(shared(), body).is_error(400, param);
    assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some("invalid_request_error"), Some(code)));
}

#[test]
fn invalid_json_is_refused() {
    for body in
        ["", "{", "prompt", "{'prompt': 1}", "{\"prompt\": \"a\",}", "{\"prompt\": \"a\"} {}", "\u{feff}{}"]
    {
        is_refused(body, "", "invalid_json");
    }
    for body in ["[]", "null", "7", "\"a prompt\""] {
        is_refused(body, "", "invalid_json");
    }
    is_refused("{}", "prompt", "missing_required_parameter");
    is_well(shared());
}

#[test]
fn a_body_that_is_no_json_is_told_what_it_is() {
    let utf16 = |bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
        r#"{"prompt": "a"}"#.encode_utf16().flat_map(bytes).collect()
    };
    for (body, wanted) in [
        (&b""[..], "empty"),
        (b"\xef\xbb\xbf{\"prompt\": \"a\"}", "byte order mark"),
        (&[&b"\xff\xfe"[..], &utf16(u16::to_le_bytes)].concat(), "UTF-16"),
        (&utf16(u16::to_le_bytes), "UTF-16"),
        (&utf16(u16::to_be_bytes), "UTF-16"),
        (b"{\"prompt\": \"caf\xe9\"}", "no UTF-8"),
        (br#"{"prompt": "a", "seed": 1, "seed": 2}"#, "`seed` stands in it twice"),
        (br#"{"prompt": "a", "user": {"x": 1, "x": 1}}"#, "`x` stands in it twice"),
    ] {
        let error = send(shared(), "POST", GENERATIONS, &[JSON], body).is_error(400, "");
        assert!(error["message"].as_str().unwrap().contains(wanted), "{wanted}: {error}");
    }
}

#[test]
fn invalid_utf8_is_refused() {
    for bytes in [&b"\xff"[..], b"\xc3(", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"] {
        is_refused([b"{\"prompt\": \"a ", bytes, b"\"}"].concat(), "", "invalid_json");
    }
}

#[test]
fn nan_literals_are_refused() {
    for literal in ["NaN", "Infinity", "-Infinity", "nan", "1e", "0x10", ".5", "+1"] {
        is_refused(format!(r#"{{"prompt": "a", "guidance_scale": {literal}}}"#), "", "invalid_json");
    }
}

#[test]
fn deep_nesting_is_refused() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        is_refused(format!(r#"{{"prompt": "a", "user": {nested}}}"#), "", "invalid_json");
    }
    is_well(shared());
}

#[test]
fn a_gzip_bomb_is_not_unpacked() {
    // What a gigabyte of zeros begins with.
    let bomb = [b"\x1f\x8b\x08\0\0\0\0\0\x02\x03", &[0u8; 10_000][..]].concat();
    for encoding in ["gzip", "br", "deflate", "zstd", "gzip, gzip"] {
        let answer = send(shared(), "POST", GENERATIONS, &[JSON, ("content-encoding", encoding)], &bomb);
        let error = answer.is_error(415, "");
        assert_eq!(error["code"], "unsupported_content_encoding");
    }
    is_refused(&bomb, "", "invalid_json");
}

#[test]
fn an_empty_prompt_is_refused() {
    is_refused(r#"{"prompt": ""}"#, "prompt", "invalid_value");
    is_refused(r#"{"prompt": null}"#, "prompt", "missing_required_parameter");
    is_refused(r#"{"prompt": ["a"]}"#, "prompt", "invalid_value");
}

#[test]
fn a_prompt_of_a_megabyte_is_refused() {
    is_refused(json!({ "prompt": "a".repeat(1_000_000) }).to_string(), "prompt", "invalid_value");
    is_refused(json!({ "prompt": "ä".repeat(32_001) }).to_string(), "prompt", "invalid_value");
    let longest = json!({ "prompt": "ä ".repeat(16_000), "size": "64x64", "num_inference_steps": 1 });
    assert_eq!(generate(shared(), &longest).status, 200);
}

#[test]
fn a_nul_in_the_prompt_is_refused() {
    is_refused(r#"{"prompt": "a \u0000 b"}"#, "prompt", "invalid_value");
    is_refused(r#"{"prompt": "a", "negative_prompt": "\u0000"}"#, "negative_prompt", "invalid_value");
    is_refused("{\"prompt\": \"a \0 b\"}", "", "invalid_json");
    // Other control characters are text.
    let odd =
        json!({ "prompt": "a\u{1}\u{7f}\u{85}\u{202e}\u{fffe}b", "size": "64x64", "num_inference_steps": 1 });
    assert_eq!(generate(shared(), &odd).status, 200);
}

#[test]
fn lone_surrogates_are_refused() {
    for text in [r"\ud800", r"\udc00", r"\ud800\ud800", r"\udc00\ud800", r"\ud83d x"] {
        is_refused(format!(r#"{{"prompt": "a {text}"}}"#), "", "invalid_json");
    }
    let pair = r#"{"prompt": "a \ud83d\ude00", "size": "64x64", "num_inference_steps": 1}"#;
    assert_eq!(post(shared(), pair).status, 200);
}

#[test]
fn a_body_that_is_too_long_is_refused_and_the_answer_is_read() {
    let body = json!({ "prompt": CIRCLE, "user": "x".repeat(20 << 20) }).to_string();
    let answer = post(shared(), &body);
    assert_eq!(answer.is_error(413, "")["code"], "body_too_large");
    // Without its length told, too.
    let mut chunked = Vec::new();
    for piece in body.as_bytes().chunks(64 << 10) {
        chunked.extend(format!("{:x}\r\n", piece.len()).bytes());
        chunked.extend(piece);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    let headers = [JSON, ("transfer-encoding", "chunked")];
    send(shared(), "POST", GENERATIONS, &headers, &chunked).is_error(413, "");
}

#[test]
fn other_content_types_are_refused() {
    for headers in [&[][..], &[("content-type", "text/plain")], &[("content-type", "application/jsonx")]] {
        let answer = send(shared(), "POST", GENERATIONS, headers, b"{}");
        assert_eq!(answer.is_error(415, "")["code"], "unsupported_content_type");
    }
    let body = r#"{"prompt": "a", "size": "64x64", "num_inference_steps": 1}"#;
    for content_type in ["application/json; charset=utf-8", "Application/JSON", "application/json ;x=y"] {
        let answer = send(shared(), "POST", GENERATIONS, &[("content-type", content_type)], body.as_bytes());
        assert_eq!(answer.status, 200, "{content_type}");
    }
}
