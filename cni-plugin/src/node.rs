//! One request to the node: HTTP/1.1 over its unix socket, one connection each, blocking.
//!
//! The node answers with a length and closes, so this is all of HTTP that is needed; a program that starts for each
//! container does not carry a web stack for it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use weave_model::api::{PREFIX, Refusal};

use crate::error::{Error, code};

/// How long the node may take. Runtimes give up after minutes; a node that works needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long all of it may take, connecting included.
const WHOLE: Duration = Duration::from_secs(35);

/// The longest answer that is read, in bytes.
const LONGEST: u64 = 16 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The node refused.
    Refused(Refusal),
    /// It does not run, or did not answer, or not so that it can be read; it may have done what it was asked.
    Unheard(String),
}

impl From<NoAnswer> for Error {
    fn from(reason: NoAnswer) -> Self {
        match reason {
            NoAnswer::Refused(refusal) => refusal.into(),
            NoAnswer::Unheard(why) => {
                Self::new(code::LATER, why).with("start weaved, or look at its log")
            }
        }
    }
}

/// Asks for what is at `path`, below the API's prefix.
pub fn get<A: DeserializeOwned>(socket: &Path, path: &str) -> Result<A, NoAnswer> {
    call(socket, "GET", path, b"")
}

/// Sends `body` as JSON to `path`.
pub fn post<A: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
) -> Result<A, NoAnswer> {
    let body = serde_json::to_vec(body)
        .map_err(|error| NoAnswer::Unheard(format!("the request cannot be written: {error}")))?;
    call(socket, "POST", path, &body)
}

fn call<A: DeserializeOwned>(
    socket: &Path,
    method: &str,
    path: &str,
    body: &[u8],
) -> Result<A, NoAnswer> {
    let unheard = |error: std::io::Error| {
        let why = match error.kind() {
            ErrorKind::WouldBlock => format!("no answer within {} s", PATIENCE.as_secs()),
            _ => error.to_string(),
        };
        NoAnswer::Unheard(format!(
            "the node at {} cannot be reached: {why}",
            socket.display()
        ))
    };
    let mut request = format!(
        "{method} {PREFIX}{path} HTTP/1.1\r\nhost: weave\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    let answer = within(WHOLE, socket.to_owned(), request).map_err(unheard)?;
    let strange =
        |why: String| NoAnswer::Unheard(format!("the node's answer cannot be read: {why}"));
    let (status, body) = split(&answer).ok_or_else(|| strange("it is not HTTP".to_owned()))?;
    if status == 200 {
        return serde_json::from_slice(body).map_err(|error| strange(error.to_string()));
    }
    match serde_json::from_slice(body) {
        Ok(refusal) => Err(NoAnswer::Refused(refusal)),
        Err(error) => Err(strange(format!("HTTP {status}, {error}"))),
    }
}

/// The whole exchange on a thread of its own: to connect waits without an end where the node takes no connections.
fn within(patience: Duration, socket: PathBuf, request: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let (told, answer) = mpsc::sync_channel(1);
    thread::Builder::new().spawn(move || {
        // Nobody waits for what comes too late.
        let _ = told.send(exchange(&socket, &request));
    })?;
    let late = |_| Err(ErrorKind::TimedOut.into());
    answer.recv_timeout(patience).unwrap_or_else(late)
}

fn exchange(socket: &Path, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    Ok(answer)
}

/// The status and the body of a whole answer (RFC 9112 sections 4 and 6); nothing for one that was cut short.
fn split(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let body = &answer[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines
        .next()?
        .strip_prefix("HTTP/1.1 ")?
        .get(..3)?
        .parse()
        .ok()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    })?;
    (body.len() == length).then_some((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_answer_is_one() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(split(whole), Some((200, &b"{}"[..])));
        for cut in 0..whole.len() {
            assert_eq!(split(&whole[..cut]), None, "{cut}");
        }
        assert_eq!(split(b"HTTP/1.1 200 OK\r\n\r\n{}"), None);
    }
}
