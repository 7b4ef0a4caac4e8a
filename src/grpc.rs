//! Calls of gRPC over a unix socket, as container runtimes take them: one message there, one back.
//!
//! Such a call is a POST over HTTP/2 whose body is the message behind five bytes, and whose trailers say how it went (gRPC
//! over HTTP2, `PROTOCOL-HTTP2.md` of the gRPC project). HTTP/2 is hyper's, messages are prost's; streams, retries and
//! balancing, for which there are larger crates, are not needed beside a socket on the same host.

use std::io;
use std::path::Path;

use axum::http::{HeaderMap, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Buf as _, Bytes};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;

/// What is before a message: whether it is compressed, and its length in four bytes.
const PREFIX: usize = 5;

/// The codes of gRPC that callers tell from others (`google.rpc.Code`).
const OK: &str = "0";
const NOT_FOUND: &str = "5";

/// A connection to a server, which ends when this is dropped.
#[derive(Debug)]
pub struct Door {
    requests: SendRequest<Full<Bytes>>,
    longest: usize,
}

/// What a call says beside its message: a header and its value.
pub type Metadata<'a> = Option<(&'static str, &'a str)>;

impl Door {
    /// Connects to the server at a socket. Answers longer than so many bytes are errors.
    ///
    /// # Errors
    /// When nobody listens there, or does not speak HTTP/2.
    pub async fn open(socket: &Path, longest: usize) -> io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let (requests, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // It ends with the door.
        tokio::spawn(connection);
        Ok(Self { requests, longest })
    }

    /// Calls a method, such as `/runtime.v1.RuntimeService/Version`.
    ///
    /// # Errors
    /// `NotFound` when the server says that there is no such thing, and others with what it says.
    pub async fn call<Answer: Message + Default>(
        &mut self,
        method: &str,
        metadata: Metadata<'_>,
        question: &impl Message,
    ) -> io::Result<Answer> {
        let mut request = Request::post(format!("http://localhost{method}"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers");
        if let Some((name, value)) = metadata {
            request = request.header(name, value);
        }
        let body = Full::new(framed(question));
        let request = request.body(body).map_err(io::Error::other)?;
        self.requests.ready().await.map_err(io::Error::other)?;
        let response = self.requests.send_request(request).await;
        let (head, body) = response.map_err(io::Error::other)?.into_parts();
        if !head.status.is_success() {
            return Err(io::Error::other(format!("{method}: {}", head.status)));
        }
        let body = Limited::new(body, self.longest).collect().await;
        let body = body.map_err(io::Error::other)?;
        // A server that has nothing to say but its status says it at once.
        judge(method, body.trailers().unwrap_or(&head.headers))?;
        let message = unframed(body.to_bytes())
            .ok_or_else(|| io::Error::other(format!("{method}: the answer is no message")))?;
        Answer::decode(message).map_err(io::Error::other)
    }
}

/// A message as it is sent.
fn framed(message: &impl Message) -> Bytes {
    let content = message.encode_to_vec();
    let length = (content.len() as u32).to_be_bytes();
    Bytes::from([&[0], &length[..], &content].concat())
}

/// The one message of a body, if that is what it is and it is not compressed.
fn unframed(mut body: Bytes) -> Option<Bytes> {
    if body.len() < PREFIX || body.get_u8() != 0 {
        return None;
    }
    let length = body.get_u32() as usize;
    (body.len() == length).then_some(body)
}

/// How the server says it went.
fn judge(method: &str, said: &HeaderMap) -> io::Result<()> {
    let word = |name: &str| said.get(name).and_then(|value| value.to_str().ok());
    let cause = word("grpc-message").unwrap_or_default();
    match word("grpc-status") {
        Some(OK) => Ok(()),
        Some(NOT_FOUND) => Err(io::Error::new(io::ErrorKind::NotFound, cause)),
        Some(code) => Err(io::Error::other(format!("{method}: code {code}, {cause}"))),
        None => Err(io::Error::other(format!("{method}: no status"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Name {
        #[prost(string, tag = "1")]
        name: String,
    }

    #[test]
    fn a_message_has_its_length_before_it() {
        let name = Name { name: "a".into() };
        let framed = framed(&name);
        assert_eq!(framed[..], [0, 0, 0, 0, 3, 0x0a, 1, b'a']);
        assert_eq!(Name::decode(unframed(framed).unwrap()).unwrap(), name);
        for wrong in [&b""[..], b"\0\0\0\0", b"\x01\0\0\0\0", b"\0\0\0\0\x02a"] {
            assert!(
                unframed(Bytes::copy_from_slice(wrong)).is_none(),
                "{wrong:?}"
            );
        }
        assert_eq!(unframed(Bytes::from_static(&[0; 5])).unwrap().len(), 0);
    }

    #[test]
    fn what_the_server_says_of_a_call_is_heard() {
        let said = |status: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", status.parse().unwrap());
            headers.insert("grpc-message", "why".parse().unwrap());
            judge("/a/B", &headers)
        };
        assert!(said("0").is_ok());
        assert_eq!(said("5").unwrap_err().kind(), io::ErrorKind::NotFound);
        let refused = said("12").unwrap_err().to_string();
        assert_eq!(refused, "/a/B: code 12, why");
        assert!(judge("/a/B", &HeaderMap::new()).is_err());
    }
}
