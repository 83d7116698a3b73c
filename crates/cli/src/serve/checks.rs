//! What a setting may be beyond its type: what could never take effect is refused, with what would.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use tch_flux::hub::Repository;

/// The threads of the largest machines; more would only be a slip of the finger.
const MAX_THREADS: usize = 1024;

pub(super) fn threads(threads: usize) -> Result<i32, String> {
    let count = (1..=MAX_THREADS).contains(&threads).then(|| i32::try_from(threads).ok()).flatten();
    count.ok_or_else(|| {
        let all = if threads == 0 { "; leave it out for as many as there are cores" } else { "" };
        format!("{threads} threads cannot compute: from 1 to {MAX_THREADS} can{all}")
    })
}

/// The side of a tile, of which the smallest picture is one.
pub(super) fn tile(side: i64) -> Result<(), String> {
    (side >= 64).then_some(()).ok_or_else(|| format!("{side} pixels: at least 64 are needed"))
}

/// Texts of which each passes a check.
pub(super) fn each<T: AsRef<str>>(
    texts: impl IntoIterator<Item = T>,
    check: fn(&str) -> Result<(), String>,
) -> Result<(), String> {
    texts.into_iter().try_for_each(|text| check(text.as_ref()))
}

/// The address to listen at.
pub(super) fn address(host: &str, port: u16) -> Result<SocketAddr, String> {
    if host == "localhost" {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Some(ip) = bare.and_then(|host| host.parse::<Ipv6Addr>().ok()) {
        return Ok(SocketAddr::new(ip.into(), port));
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let after_scheme = host.split_once("://").map_or(host, |(_, rest)| rest);
    let authority = after_scheme.split(['/', '?', '#']).next().unwrap_or_default();
    let hint = match authority.parse::<SocketAddr>() {
        Ok(with_port) => format!("; {} and port {} are two settings", with_port.ip(), with_port.port()),
        Err(_) if authority.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() => {
            format!("; {} is", authority.trim_matches(['[', ']']))
        }
        Err(_) if ["*", "all", "any", ""].contains(&host) => {
            "; 0.0.0.0 is that of all networks, and :: with IPv6".into()
        }
        Err(_) if authority.eq_ignore_ascii_case("localhost") || authority.starts_with("localhost:") => {
            "; localhost is, and the port is a setting of its own".into()
        }
        Err(_) => {
            "; 127.0.0.1 is this machine's own, 0.0.0.0 that of all networks, and other names of it are for \
                   --allowed-host"
                .into()
        }
    };
    Err(format!("{host:?} is no address of this machine{hint}"))
}

/// An origin, as a browser writes it, or `*`.
fn origin(text: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("no page has the origin {text:?}: {why}"));
    if text == "*" {
        return Ok(());
    }
    if text.matches("://").count() > 1 {
        return wrong("several are separated by commas");
    }
    if text.starts_with(char::is_whitespace) {
        return wrong("it begins with a space, and an origin with its scheme");
    }
    if text == "null" {
        return wrong("that is what any page can make of itself; `*` lets all call");
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let name = text.trim_start_matches("//").split('/').next().unwrap_or_default();
        return match canonical(name) {
            Ok(name) => wrong(&format!("it begins with a scheme, as in https://{name} or http://{name}")),
            Err(_) => wrong("it is a scheme and a name, as in https://example.org"),
        };
    };
    if scheme.eq_ignore_ascii_case("file") {
        return wrong("pages from files have none; `*` lets all call");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(plain) {
        return wrong("its scheme is none; https://example.org has one");
    }
    let scheme = scheme.to_lowercase();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let name = canonical(authority).map_err(|why| format!("no page has the origin {text:?}: {why}"))?;
    let usual = match scheme.as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => "\0",
    };
    let written = format!("{scheme}://{}", name.strip_suffix(usual).unwrap_or(&name));
    if written == text { Ok(()) } else { wrong(&format!("a browser writes {written}")) }
}

/// A name that clients have for the server, alone or with a port.
pub(super) fn host(text: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("no client calls the server {text:?}: {why}"));
    let after_scheme = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = after_scheme.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    if authority == "*" {
        return wrong(
            "there are no patterns; every name is answered where none is given and the server wants a key or \
             listens beyond the loopback",
        );
    }
    // The header is compared without regard to case.
    match canonical(&authority.to_lowercase()) {
        Ok(name) if name == text.to_lowercase() => Ok(()),
        Ok(name) => wrong(&format!("they call it {name}")),
        Err(why) => wrong(&why),
    }
}

/// What the addresses of pictures begin with.
pub(super) fn public_url(text: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("no picture has an address that begins with {text:?}: {why}"));
    let web = |scheme: &str| ["http", "https"].contains(&scheme.to_lowercase().as_str());
    let Some((scheme, rest)) = text.split_once("://") else {
        let name = text.trim_start_matches("//");
        let valid = canonical(name.split('/').next().unwrap_or_default()).is_ok();
        let example = if valid { name } else { "example.org" };
        return wrong(&format!("it begins with a scheme, as in https://{example}"));
    };
    if !web(scheme) {
        return wrong("its scheme is http or https");
    }
    if text.contains(['?', '#']) {
        let kept = text.split(['?', '#']).next().unwrap_or_default();
        return wrong(&format!("the address goes on behind it, so it ends before ? and #, as in {kept}"));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control() || "\"<>\\^`{|}".contains(c) || !c.is_ascii())
    {
        return wrong("it has letters that no address has; they are written with %");
    }
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return wrong("clients would be shown a password");
    }
    canonical(authority).map(|_| ()).map_err(|why| format!("{text:?} is no address: {why}"))
}

/// A name or an address, with or without a port, in lower case.
fn canonical(authority: &str) -> Result<String, String> {
    let (name, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (authority, None),
    };
    if let Some(port) = port.filter(|port| !is_port(port)) {
        return Err(match authority.parse::<Ipv6Addr>() {
            Ok(ip) => format!("an IPv6 address stands in brackets, [{ip}]"),
            Err(_) => format!("{port:?} is no port, which is a number from 1 to 65535"),
        });
    }
    let name = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(ip) => {
            let ip: Ipv6Addr = ip.parse().map_err(|_| format!("{ip:?} is no IPv6 address"))?;
            format!("[{ip}]")
        }
        None if authority.parse::<Ipv6Addr>().is_ok() => {
            return Err(format!("an IPv6 address stands in brackets, [{authority}]"));
        }
        None => name.trim_end_matches('.').to_lowercase(),
    };
    if name.contains('*') {
        return Err("there are no patterns: give each name".into());
    }
    if !name.is_ascii() {
        return Err("names with other letters are sent in their ASCII form, which begins with xn--".into());
    }
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    if !name.starts_with('[') && !name.split('.').all(part) {
        return Err("it is a name with letters, digits, hyphens and dots, as example.org".into());
    }
    if name.bytes().all(|b| b.is_ascii_digit() || b == b'.') && name.parse::<IpAddr>().is_err() {
        return Err(format!("{name:?} is no address"));
    }
    Ok(port.map_or(name.clone(), |port| format!("{name}:{}", port.trim_start_matches('0'))))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

/// A key that `Authorization: Bearer KEY` can bring.
pub(super) fn key(key: &str) -> Result<(), String> {
    if key.is_empty() {
        return Err("the API key is empty: give another, or none".into());
    }
    if key.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("bearer ")) {
        return Err("the API key is what stands behind `Bearer` in a request".into());
    }
    if key.trim() != key {
        return Err("the API key begins or ends with a space, which no request can bring".into());
    }
    if key.chars().any(char::is_control) {
        return Err("the API key has several lines, or letters that no request can bring".into());
    }
    Ok(())
}

/// Origins, of which none stands beside `*`, where it would have no effect.
pub(super) fn origins(all: &[String]) -> Result<(), String> {
    each(all, origin)?;
    let other = all.iter().find(|origin| *origin != "*");
    match other.filter(|_| all.iter().any(|origin| origin == "*")) {
        Some(other) => {
            Err(format!("`*` lets all pages call, so {other:?} has no effect: one of both is meant"))
        }
        None => Ok(()),
    }
}

/// A name that clients and logs show.
pub(super) fn name(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("the name is empty".into());
    }
    if text.chars().any(char::is_control) {
        return Err("the name has several lines, or letters that are none".into());
    }
    Ok(())
}

/// What is no file or folder, and is perhaps a repository's name.
pub(super) fn on_the_hub(text: &str) -> Result<(), String> {
    let Err(wrong) = text.parse::<Repository>() else { return Ok(()) };
    let (_, path) = text.split_once("://").unwrap_or(("", ""));
    let repository = path.split('/').skip(1).take(2).collect::<Vec<_>>().join("/");
    let hint = match repository.parse::<Repository>() {
        Ok(_) => format!("; is `{repository}` meant?"),
        Err(_) if text.starts_with('~') => "; `~` is written out by shells alone".into(),
        Err(_) => String::new(),
    };
    Err(format!("there is no such file or folder, nor is it a name on the hub: {wrong}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(check: fn(&str) -> Result<(), String>, cases: &[(&str, &str)]) {
        for (text, expected) in cases {
            let said = check(text).expect_err(text);
            assert!(said.contains(expected), "{text:?}: {said}");
        }
    }

    fn taken(check: fn(&str) -> Result<(), String>, cases: &[&str]) {
        for text in cases {
            assert_eq!(check(text), Ok(()), "{text:?}");
        }
    }

    #[test]
    fn threads_are_some_and_not_too_many() {
        assert_eq!((threads(1), threads(64)), (Ok(1), Ok(64)));
        assert!(threads(0).unwrap_err().contains("leave it out"));
        assert!(threads(100_000).is_err() && threads(usize::MAX).is_err());
    }

    #[test]
    fn an_address_is_one_of_this_machine() {
        for (host, expected) in [
            ("127.0.0.1", "127.0.0.1:8000"),
            ("localhost", "127.0.0.1:8000"),
            ("0.0.0.0", "0.0.0.0:8000"),
            ("::1", "[::1]:8000"),
            ("[::1]", "[::1]:8000"),
            ("::", "[::]:8000"),
        ] {
            assert_eq!(address(host, 8000).unwrap().to_string(), expected);
        }
        for (host, expected) in [
            ("http://127.0.0.1", "127.0.0.1 is"),
            ("127.0.0.1:9000", "port 9000"),
            ("[::1]:9000", "port 9000"),
            ("http://0.0.0.0:80/", "port 80"),
            ("*", "0.0.0.0"),
            ("", "0.0.0.0"),
            ("nowhere", "--allowed-host"),
            ("127.0.0.256", "0.0.0.0"),
            ("localhost:8000", "localhost is"),
            ("[127.0.0.1]", "127.0.0.1 is"),
        ] {
            let said = address(host, 8000).expect_err(host);
            assert!(said.contains(expected), "{host:?}: {said}");
        }
    }

    #[test]
    fn an_origin_is_as_a_browser_writes_it() {
        taken(
            origin,
            &[
                "*",
                "https://example.org",
                "http://localhost:3000",
                "https://example.org:8443",
                "http://[::1]:8080",
                "http://127.0.0.1",
                "chrome-extension://abcdefghij",
                "tauri://localhost",
                "https://a_b.example",
            ],
        );
        refused(
            origin,
            &[
                ("https://example.org/", "writes https://example.org"),
                ("https://example.org/app", "writes https://example.org"),
                ("https://example.org?x=1", "writes https://example.org"),
                ("https://Example.org", "writes https://example.org"),
                ("HTTPS://example.org", "writes https://example.org"),
                ("https://example.org:443", "writes https://example.org"),
                ("http://example.org:80", "writes http://example.org"),
                ("https://me@example.org", "writes https://example.org"),
                ("https://example.org.", "writes https://example.org"),
                ("http://[0:0:0:0:0:0:0:1]", "writes http://[::1]"),
                ("http://::1", "brackets"),
                ("example.org", "https://example.org"),
                ("//example.org", "https://example.org"),
                ("localhost:3000", "http://localhost:3000"),
                ("https://example.org:70000", "no port"),
                ("https://example.org:", "no port"),
                ("https://example.org:0", "no port"),
                ("https://*.example.org", "patterns"),
                ("https://", "name"),
                ("", "scheme"),
                ("null", "`*`"),
                ("file:///home/me/page.html", "`*`"),
                ("https://exämple.org", "xn--"),
                (" https://example.org", "scheme"),
                ("http://a.example;http://b.example", "commas"),
                ("http://a.example http://b.example", "commas"),
                ("https://example.org ", "name"),
                ("https://example .org", "name"),
                ("https://256.1.1.1", "no address"),
            ],
        );
    }

    #[test]
    fn a_host_is_a_name_that_clients_call() {
        taken(
            host,
            &["flux.example", "Flux.Example", "flux.example:8000", "[::1]:8000", "10.0.0.7", "flux", "a_b"],
        );
        refused(
            host,
            &[
                ("https://flux.example", "call it flux.example"),
                ("https://flux.example/", "call it flux.example"),
                ("flux.example/v1", "call it flux.example"),
                ("flux.example.", "call it flux.example"),
                ("http://flux.example:8000/v1", "call it flux.example:8000"),
                ("*", "patterns"),
                ("*.flux.example", "patterns"),
                ("flux.example:http", "no port"),
                ("flux.example:99999", "no port"),
                ("::1", "[::1]"),
                ("", "name"),
                ("a b", "name"),
                ("flüx.example", "xn--"),
            ],
        );
    }

    #[test]
    fn a_public_url_is_the_beginning_of_an_address() {
        taken(
            public_url,
            &[
                "https://pictures.example",
                "https://pictures.example/",
                "http://[::1]:8000",
                "https://a.example/flux",
            ],
        );
        refused(
            public_url,
            &[
                ("pictures.example", "https://pictures.example"),
                ("pictures.example/flux", "https://pictures.example/flux"),
                ("//pictures.example", "https://pictures.example"),
                ("ftp://pictures.example", "http or https"),
                ("https://pictures.example?x=1", "as in https://pictures.example"),
                ("https://pictures.example#a", "as in https://pictures.example"),
                ("https://me:pw@pictures.example", "password"),
                ("https://pictures.example:99999", "no port"),
                ("https://", "name"),
                ("https:// pictures.example", "%"),
                ("http://::1", "brackets"),
                ("", "scheme"),
            ],
        );
    }

    #[test]
    fn no_origin_stands_beside_all() {
        let list = |all: &[&str]| origins(&all.iter().map(|text| text.to_string()).collect::<Vec<_>>());
        assert!(list(&["*"]).is_ok() && list(&["http://a", "http://b"]).is_ok() && list(&[]).is_ok());
        assert!(list(&["*", "http://a"]).unwrap_err().contains("http://a"));
    }

    #[test]
    fn a_model_that_is_not_here_has_a_name_on_the_hub() {
        taken(on_the_hub, &["black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev@main"]);
        refused(
            on_the_hub,
            &[
                ("nowhere", "OWNER/NAME"),
                ("~/models/flux", "shells"),
                ("https://huggingface.co/black-forest-labs/FLUX.1-dev", "`black-forest-labs/FLUX.1-dev`"),
                (
                    "https://huggingface.co/black-forest-labs/FLUX.1-dev/tree/main",
                    "`black-forest-labs/FLUX.1-dev`",
                ),
            ],
        );
    }

    #[test]
    fn a_key_is_one_that_a_request_can_bring() {
        taken(key, &["sesame", "a b", "schlüssel"]);
        refused(
            key,
            &[
                ("", "empty"),
                ("Bearer a", "`Bearer`"),
                (" a", "space"),
                ("a\n", "space"),
                ("a\nb", "lines"),
                ("a\0b", "letters"),
            ],
        );
    }
}
