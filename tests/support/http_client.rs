//! A client that can be as rude as a test wants: HTTP by hand, over one connection or many.
#![allow(dead_code, reason = "each of the tests that share it needs a part of it")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything takes on a busy machine, and shorter than a test may hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|problem| panic!("{problem}: {self:?}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// What is under `error`: the one form, with what every answer has.
    pub fn error(&self) -> Value {
        let body = self.json();
        assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
        let error = body["error"].clone();
        let keys: Vec<_> = error.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["code", "message", "param", "type"], "{error}");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
        assert!(error["type"].is_string(), "{error}");
        assert!(self.header("x-request-id").is_some_and(|id| !id.is_empty()), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"));
        // What may fare better says when; what may not, that it may not.
        let again = self.header("retry-after").is_some();
        assert_eq!(self.header("x-should-retry"), (!again).then_some("false"), "{self:?}");
        error
    }

    /// An error of this status, about this field (empty for none).
    pub fn is_error(&self, status: u16, param: &str) -> Value {
        let error = self.error();
        assert_eq!(self.status, status, "{error}");
        assert_eq!(error["param"].as_str().unwrap_or_default(), param, "{error}");
        error
    }

    /// The files of an answer with pictures.
    pub fn pictures(&self) -> Vec<Vec<u8>> {
        use base64::Engine;
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        let data = self.json()["data"].as_array().unwrap().clone();
        let decode = |datum: &Value| {
            datum["b64_json"].as_str().map(|text| base64::prelude::BASE64_STANDARD.decode(text).unwrap())
        };
        data.iter().map(|datum| decode(datum).unwrap()).collect()
    }
}

/// A connection that stays.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        self.write(&bytes(method, path, headers, body)).unwrap();
    }

    pub fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end_matches(['\r', '\n']).to_string()),
        }
    }

    /// Status and headers.
    pub fn head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status in {line:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else { return Ok((status, headers)) };
            headers.push((name.to_lowercase(), value.to_string()));
        }
    }

    pub fn answer(&mut self) -> io::Result<Answer> {
        let (status, headers) = self.head()?;
        if status == 100 {
            return self.answer();
        }
        let header = |name| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let mut body = Vec::new();
        if let Some(length) = header("content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.stream.read_exact(&mut body)?;
        } else if header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk()? {
                body.extend(chunk);
            }
        }
        Ok(Answer { status, headers, body })
    }

    /// How many bytes come yet, until the connection ends or breaks off.
    pub fn rest(&mut self) -> usize {
        let mut rest = Vec::new();
        // What came before an error is there.
        let _ = self.stream.read_to_end(&mut rest);
        rest.len()
    }

    /// The next piece of a chunked body; `None` at its end.
    pub fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let length = usize::from_str_radix(&self.line()?, 16).unwrap();
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk)?;
        chunk.truncate(length);
        Ok((length > 0).then_some(chunk))
    }

    /// Whether anything has come: an answer, or the end.
    pub fn has_come(&mut self) -> bool {
        self.stream.get_ref().set_nonblocking(true).unwrap();
        let come = self.stream.get_ref().peek(&mut [0]).is_ok();
        self.stream.get_ref().set_nonblocking(false).unwrap();
        come
    }

    /// Whether the other side has closed it, sooner or later.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

pub fn bytes(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    let has = |wanted: &str| headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
    if !has("host") {
        head.push_str("host: localhost\r\n");
    }
    if !has("content-length") && !has("transfer-encoding") && (method == "POST" || !body.is_empty()) {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    [head.as_bytes(), b"\r\n", body].concat()
}

pub fn send(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut connection = Connection::open(to);
    connection.send(method, path, headers, body);
    connection.answer().unwrap()
}

pub fn get(to: SocketAddr, path: &str) -> Answer {
    send(to, "GET", path, &[], b"")
}

pub const JSON: (&str, &str) = ("content-type", "application/json");
pub const GENERATIONS: &str = "/v1/images/generations";
pub const EDITS: &str = "/v1/images/edits";

pub fn post(to: SocketAddr, body: impl AsRef<[u8]>) -> Answer {
    send(to, "POST", GENERATIONS, &[JSON], body.as_ref())
}

pub fn generate(to: SocketAddr, body: &Value) -> Answer {
    post(to, body.to_string())
}

/// A form: each part a name, a file name where it is a file, and what it holds.
pub fn form(parts: &[(&str, Option<&str>, &[u8])]) -> (String, Vec<u8>) {
    let boundary = "----------------a-boundary";
    let mut body = Vec::new();
    for (name, file, content) in parts {
        let file = file.map_or(String::new(), |file| format!("; filename=\"{file}\""));
        body.extend(
            format!("--{boundary}\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n").bytes(),
        );
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{boundary}--\r\n").bytes());
    (format!("multipart/form-data; boundary={boundary}"), body)
}

pub fn edit(to: SocketAddr, parts: &[(&str, Option<&str>, &[u8])]) -> Answer {
    let (content_type, body) = form(parts);
    send(to, "POST", EDITS, &[("content-type", &content_type)], &body)
}

/// An event of a stream: its name, and its data. Comments have no name.
#[derive(Debug)]
pub struct Event {
    pub name: Option<String>,
    pub data: String,
}

pub fn events(text: &str) -> Vec<Event> {
    let block = |block: &str| {
        let mut event = Event { name: None, data: String::new() };
        for line in block.lines() {
            match line.split_once(": ").unwrap_or_else(|| panic!("{line:?}")) {
                ("event", name) => event.name = Some(name.into()),
                ("data", data) => event.data = data.into(),
                ("", _) => {}
                _ => panic!("{line:?}"),
            }
        }
        event
    };
    text.split_terminator("\n\n").map(block).filter(|event| !event.data.is_empty()).collect()
}

/// One number of `/metrics`.
pub fn metric(to: SocketAddr, name: &str) -> f64 {
    let text = get(to, "/metrics").text();
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or(0.0)
}

pub fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "it never came to pass: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asked over and over, until the other side is there.
pub fn until_ready(to: SocketAddr) {
    until("it is ready", || get(to, "/ready").status == 200);
}
