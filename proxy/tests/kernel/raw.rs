//! What no socket sends: SCTP, which this kernel may have no sockets of, by packets made by hand, and packets that belong to
//! no connection.
//!
//! An association of SCTP is begun only: an INIT to the Service, and the INIT ACK of whoever gets it. That shows both
//! translations; what follows has the same ports and is translated by the same entry.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use weave_linux::netns::{Netns, run_in};
use weave_model::{EngineChoice, Protocol, Service, ServiceKind};
use weave_proxy::sources::Change;

use crate::lab::{A, B, C, Lab, at, connect, echoes, exposed, ip, port, slice, slice6, web};

cases! {
    should_create_a_basic_sctp_service_with_pod_and_endpoints => NoSctp,
    should_function_for_pod_service_sctp => NoSctp,
    should_function_for_node_service_sctp => NoSctp,
    should_function_for_endpoint_service_sctp => Unmasked,
    should_function_for_intra_pod_and_node_pod_communication_sctp => Thief,
    should_function_for_pod_service_sctp_secondary_ip_family => NoSctp6,
    should_function_for_node_service_sctp_secondary_ip_family => NoSctp6,
    should_function_for_endpoint_service_sctp_secondary_ip_family => Unmasked6,
}

/// Both ends: `SECONDS client ADDRESS PORT` says who answered, `SECONDS server` answers one and says whom it saw.
const SCTP: &str = include_str!("../../../tests/sctp.py");

/// One end at work.
struct End(Child, BufReader<std::process::ChildStdout>);

impl End {
    fn start(netns: &Netns, words: &[&str]) -> Self {
        let patience = crate::mutants::patience(Duration::from_secs(10));
        let mut command = Command::new("python3");
        command.args(["-c", SCTP, &patience.as_secs_f32().to_string()]);
        Self::run(netns, command.args(words))
    }

    /// Starts a program that says when it is ready.
    fn run(netns: &Netns, command: &mut Command) -> Self {
        let command = command.stdout(Stdio::piped());
        let mut child = run_in(netns, || command.spawn()).unwrap().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child, out)
    }

    fn says(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One begins an association with a front; the server that gets it, what that saw, and who answered.
#[track_caller]
fn associates(from: &Netns, to: (&str, &str), server: &Netns) -> (String, String) {
    let mut answering = End::start(server, &["server", to.0]);
    let mut asking = End::start(from, &["client", to.0, to.1]);
    let saw = answering.says();
    assert!(saw.ends_with(" 8080"), "the server got {saw:?}");
    let answer = asking.says();
    assert_eq!(answer, format!("{} {} 4321", to.0, to.1), "who answered");
    (saw, answer)
}

fn with_sctp() -> Service {
    Service {
        kind: ServiceKind::NodePort,
        ports: vec![port(Protocol::Sctp, 80, Some(30_080))],
        balancer: Vec::new(),
        ..exposed()
    }
}

fn lab(on: EngineChoice, endpoint: &str) -> Lab {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(with_sctp()), slice([at(endpoint)])]);
    lab
}

/// The same with a virtual address and an endpoint of IPv6 besides.
fn lab6(on: EngineChoice, endpoint: &str) -> Lab {
    let mut lab = lab(on, C);
    let mut both = with_sctp();
    both.addresses.push(ip("fd96::1"));
    lab.report([Change::Service(both), slice6(&[endpoint])]);
    lab
}

const WEB: (&str, &str) = ("10.96.0.1", "80");
const NODE_PORT: (&str, &str) = ("192.0.2.2", "30080");
const WEB6: (&str, &str) = ("fd96::1", "80");
const NODE_PORT6: (&str, &str) = ("2001:db8::2", "30080");

fn should_create_a_basic_sctp_service_with_pod_and_endpoints(on: EngineChoice) {
    let lab = lab(on, B);
    let (saw, _) = associates(&lab.a, WEB, &lab.b);
    assert_eq!(saw, format!("{A} 8080"), "the client is seen as it is");
}

fn should_function_for_pod_service_sctp(on: EngineChoice) {
    let lab = lab(on, B);
    associates(&lab.a, WEB, &lab.b);
    associates(&lab.c, NODE_PORT, &lab.b);
}

fn should_function_for_node_service_sctp(on: EngineChoice) {
    let lab = lab(on, B);
    associates(&lab.host, WEB, &lab.b);
    associates(&lab.outside, NODE_PORT, &lab.b);
}

/// The server has two raw sockets, of which each gets every packet; so it is its own client.
fn should_function_for_endpoint_service_sctp(on: EngineChoice) {
    let lab = lab(on, A);
    let (saw, _) = associates(&lab.a, WEB, &lab.a);
    assert_ne!(
        saw,
        format!("{A} 8080"),
        "an answer to itself would not come back"
    );
}

fn should_function_for_intra_pod_and_node_pod_communication_sctp(on: EngineChoice) {
    let lab = lab(on, B);
    for from in [&lab.a, &lab.host] {
        associates(from, (B, "8080"), &lab.b);
    }
}

fn should_function_for_pod_service_sctp_secondary_ip_family(on: EngineChoice) {
    let lab = lab6(on, "fd77::3");
    let (saw, _) = associates(&lab.a, WEB6, &lab.b);
    assert_eq!(saw, "fd77::2 8080", "the client is seen as it is");
    associates(&lab.c, NODE_PORT6, &lab.b);
}

fn should_function_for_node_service_sctp_secondary_ip_family(on: EngineChoice) {
    let lab = lab6(on, "fd77::3");
    associates(&lab.host, WEB6, &lab.b);
    associates(&lab.outside, NODE_PORT6, &lab.b);
}

fn should_function_for_endpoint_service_sctp_secondary_ip_family(on: EngineChoice) {
    let lab = lab6(on, "fd77::2");
    let (saw, _) = associates(&lab.a, WEB6, &lab.a);
    assert_ne!(
        saw, "fd77::2 8080",
        "an answer to itself would not come back"
    );
}

kernel_cases! {
    should_drop_invalid_conntrack_entries => Invalid,
}

/// The client's end: says "seen" if a packet comes from the endpoint by its own address before a datagram to port 9.
const WATCH: &str = r#"
import socket, struct
sniff = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
print("ready", flush=True)
seen = False
while True:
    data = sniff.recv(2048)
    body = data[(data[0] & 15) * 4:]
    source, target = struct.unpack("!HH", body[:4])
    seen |= data[9] == 6 and source == 8080 and data[12:16] == bytes([10, 32, 0, 3])
    if data[9] == 17 and target == 9:
        print("seen" if seen else "clean", flush=True)
        break
"#;

/// The endpoint's end: once its server has said something, a segment far ahead of the window of that connection (one that is
/// behind it is taken for sent again), and then the datagram.
const STRAY: &str = r#"
import socket, struct, sys, time
def sum16(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
# Of what goes out, only those who listen to all protocols are told.
sniff = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
print("ready", flush=True)
client, here, there = int(sys.argv[1]), bytes([10, 32, 0, 3]), bytes([10, 32, 0, 2])
while True:
    data = sniff.recv(65536)
    if data[0] >> 4 != 4 or data[9] != 6 or data[12:16] != here:
        continue
    source, target, seq, ack = struct.unpack("!HHII", data[(data[0] & 15) * 4:][:12])
    if (source, target) == (8080, client):
        break
seq = (seq + 0x10000000) & 0xFFFFFFFF
segment = lambda sum: struct.pack("!HHIIBBHHH", 8080, client, seq, ack, 0x50, 0x10, 100, sum, 0)
pseudo = here + there + struct.pack("!HH", 6, 20)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 6)
raw.sendto(segment(sum16(pseudo + segment(0))), ("10.32.0.2", 0))
time.sleep(0.5) # cores may let one packet overtake another
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"end", ("10.32.0.2", 9))
"#;

fn should_drop_invalid_conntrack_entries(on: EngineChoice) {
    let mut lab = Lab::new(on);
    lab.report([Change::Service(web()), slice([at(B)])]);
    let (mut stream, _) = connect(&lab.a, "10.96.0.1:80", Duration::from_secs(10)).unwrap();
    let port = stream.local_addr().unwrap().port().to_string();
    let python = |script: &str, more: &[&str]| {
        let mut command = Command::new("python3");
        command.args(["-c", script]).args(more);
        command
    };
    let mut watching = End::run(&lab.a, &mut python(WATCH, &[]));
    let _stray = End::run(&lab.b, &mut python(STRAY, &[&port]));
    assert!(echoes(&mut stream));
    assert_eq!(
        watching.says(),
        "clean",
        "the endpoint's own address came through"
    );
    assert!(echoes(&mut stream), "the connection stands");
}
