//! What strangers, members and callers can send, and what must hold whatever it is: one function for each parser.
//!
//! A target takes any bytes and panics when something it promises does not hold: no panic below it, what was read is
//! what is written, lengths stay inside, nothing is believed that nobody signed. `tests/fuzz.rs` calls each with its
//! seeds, its corpus and changed copies of both; `./run fuzz` calls the same functions under libFuzzer.

mod api;
mod core;
mod docker;
mod handshake;
mod members;
mod mesh;
mod page;
mod path;
mod relayed;
mod runtimes;
mod sight;
mod wire;

/// One thing to be fuzzed.
pub(crate) struct Target {
    /// As `./run fuzz` and the folder of its corpus call it.
    pub(crate) name: &'static str,
    /// What is read.
    pub(crate) about: &'static str,
    /// Panics when the bytes break a promise.
    pub(crate) run: fn(&[u8]),
    /// Well-formed inputs, to begin with.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    target(
        "header",
        "the clear part of datagrams, and the locks on the door",
        wire::header,
        wire::header_seeds,
    ),
    target(
        "content",
        "sealed content: slices, packet records, envelopes, control",
        wire::content,
        wire::content_seeds,
    ),
    target(
        "packet",
        "inner packets: IP headers, checksums, congestion marks",
        path::packet,
        path::packet_seeds,
    ),
    target(
        "frames",
        "slices in any order, put together again",
        path::frames,
        path::frames_seeds,
    ),
    target(
        "template",
        "the virtio header built from a slice's headers",
        path::template,
        path::template_seeds,
    ),
    target(
        "handshake",
        "handshakes between members, cookies",
        handshake::members,
        handshake::members_seeds,
    ),
    target(
        "join",
        "handshakes of strangers with a token, requests, grants",
        handshake::join,
        handshake::join_seeds,
    ),
    target(
        "message",
        "control messages between members",
        mesh::message,
        mesh::message_seeds,
    ),
    target(
        "record",
        "signed records of members",
        mesh::record,
        mesh::record_seeds,
    ),
    target(
        "removal",
        "signed removals of members",
        members::removal,
        members::removal_seeds,
    ),
    target(
        "deed",
        "deeds, grants and blocks",
        mesh::deed,
        mesh::deed_seeds,
    ),
    target(
        "state",
        "the saved state of a node",
        mesh::state,
        mesh::state_seeds,
    ),
    target(
        "token",
        "join tokens as people paste them",
        api::token,
        api::token_seeds,
    ),
    target(
        "report",
        "what members tell of themselves, and the picture of it",
        sight::report,
        sight::report_seeds,
    ),
    target(
        "page",
        "requests to the server behind the page, of whoever has not logged in",
        page::requests,
        page::requests_seeds,
    ),
    target(
        "viewer",
        "requests to the server behind the page, of who has logged in",
        page::viewer,
        page::viewer_seeds,
    ),
    target(
        "api",
        "request bodies of the node API",
        api::bodies,
        api::bodies_seeds,
    ),
    target(
        "docker",
        "calls of Docker to its plugin",
        docker::call,
        docker::call_seeds,
    ),
    target(
        "cni",
        "environment and stdin of the CNI plugin, and what other plugins answer it",
        runtimes::cni,
        runtimes::cni_seeds,
    ),
    target(
        "netavark",
        "networks and containers as netavark describes them",
        runtimes::of_netavark,
        runtimes::netavark_seeds,
    ),
    target(
        "core",
        "a whole core in virtual time: datagrams, members' messages, commands, crashes",
        core::run,
        core::seeds,
    ),
    target(
        "sessions",
        "datagrams, answers, refusals and silence at the relay of Services, beside a naive copy",
        relayed::sessions,
        relayed::sessions_seeds,
    ),
];

const fn target(
    name: &'static str,
    about: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
) -> Target {
    Target {
        name,
        about,
        run,
        seeds,
    }
}

/// Takes choices from a target's input; at its end all are zero.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from(self.u8()) << 8 | u16::from(self.u8())
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }

    fn u64(&mut self) -> u64 {
        u64::from(self.u32()) << 32 | u64::from(self.u32())
    }

    /// As many bytes, or what is left.
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(count.min(self.0.len()));
        self.0 = tail;
        head
    }

    /// Bytes behind their length.
    fn chunk(&mut self) -> &'a [u8] {
        let count = self.u16();
        self.bytes(count.into())
    }
}

/// Appends bytes behind their length, as [`Input::chunk`] takes them.
fn push_chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}
