//! What really crossed a wire: a `tcpdump` on one interface, read back and judged.
//!
//! All traffic of the labs carries [`MARKER`], so a packet that can be read anywhere between hosts is found by looking
//! for 16 bytes. On the same wire nothing may appear but datagrams of Weave's own port with a known type, and what
//! neighbours need to find one another.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;

use data_encoding::HEXLOWER;

use super::ns::Ns;

/// 16 bytes that every packet of a lab's traffic carries and that nothing else does.
pub(crate) const MARKER: &[u8; 16] = b"weave-lab-marker";

/// How long a packet may stay in the kernel's ring before `tcpdump` sees it: it waits a second for a block to fill.
const SETTLE: Duration = Duration::from_millis(1100);

/// How an interface of a namespace is called.
pub(super) fn place(ns: &Ns, ifname: &str) -> String {
    format!("{}:{ifname}", ns.name())
}

/// A running capture of one interface.
pub(crate) struct Capture {
    place: String,
    file: PathBuf,
    tcpdump: Child,
    said: BufReader<ChildStderr>,
}

impl Capture {
    /// Starts to capture, and returns once the kernel hands over packets.
    pub(crate) fn start(ns: &Ns, ifname: &str, dir: &Path) -> Self {
        let place = place(ns, ifname);
        let file = dir.join(format!("{}.{ifname}.pcap", ns.name()));
        let mut tcpdump = ns
            .command("tcpdump")
            .args(["-i", ifname, "-n", "-U", "-B", "65536", "-Z", "root", "-w"])
            .arg(&file)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("tcpdump starts");
        let mut said = BufReader::new(tcpdump.stderr.take().expect("stderr is piped"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            let read = said.read_line(&mut line).expect("tcpdump says something");
            assert!(read > 0, "tcpdump ended before it listened on {place}");
        }
        Self {
            place,
            file,
            tcpdump,
            said,
        }
    }

    /// Where it captures.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Ends the capture and returns every frame it saw; fails if the kernel lost any.
    pub(crate) fn stop(self) -> Frames {
        std::thread::sleep(SETTLE);
        self.stop_now()
    }

    /// Ends several captures at once.
    pub(crate) fn stop_all(captures: impl Iterator<Item = Self>) -> Vec<Frames> {
        std::thread::sleep(SETTLE);
        captures.map(Self::stop_now).collect()
    }

    fn stop_now(mut self) -> Frames {
        super::ns::host(&format!("kill -INT {}", self.tcpdump.id()));
        let mut rest = String::new();
        self.said
            .read_to_string(&mut rest)
            .expect("tcpdump's summary is text");
        self.tcpdump.wait().expect("tcpdump ends");
        assert!(
            rest.contains("\n0 packets dropped by kernel") || rest.starts_with("0 packets dropped"),
            "the capture of {} lost packets: {rest}",
            self.place
        );
        Frames {
            place: self.place,
            frames: read_pcap(&self.file),
        }
    }
}

/// The frames that one capture saw.
pub(crate) struct Frames {
    place: String,
    frames: Vec<Vec<u8>>,
}

impl Frames {
    /// Where they were captured.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// How many frames could be read: they contain the marker.
    pub(crate) fn readable(&self) -> usize {
        self.frames.iter().filter(|frame| readable(frame)).count()
    }

    /// The IP packets, in hex with their frames' headers, that have these bytes at this place of their header, or, for ARP, as the sender's address.
    pub(crate) fn mentioning(&self, address: &[u8], at: usize) -> Vec<String> {
        let says = |frame: &&Vec<u8>| {
            let at = match (be16(frame, 12), address.len()) {
                (Some(0x0800), 4) | (Some(0x86dd), 16) => at,
                // What hosts answer in another's name is theirs.
                (Some(0x0806), 4) if frame.get(6..12) != Some(b"\x02Weave") => 14,
                _ => return false,
            };
            frame.get(14 + at..14 + at + address.len()) == Some(address)
        };
        let found = self.frames.iter().filter(says);
        found.map(|frame| HEXLOWER.encode(frame)).collect()
    }

    /// How many frames are datagrams of Weave.
    pub(crate) fn sealed(&self) -> usize {
        self.frames
            .iter()
            .filter(|frame| matches!(classify(frame), Kind::Weave(_)))
            .count()
    }

    /// The datagrams of Weave that went to one address, over IPv4 or IPv6: from where, and what was in them.
    pub(crate) fn datagrams_to(&self, to: IpAddr) -> Vec<(SocketAddr, Vec<u8>)> {
        let frames = self.frames.iter();
        frames.filter_map(|frame| datagram_to(frame, to)).collect()
    }

    /// The first frame that should not be here: one that can be read, a datagram of an unknown type, or anything but
    /// Weave and neighbour discovery. `allowed` are addresses outside the cluster with which hosts may talk as they
    /// like.
    pub(crate) fn misfit(&self, allowed: &[IpAddr]) -> Option<String> {
        let misfit = |frame: &&Vec<u8>| match classify(frame) {
            Kind::Other { ends: Some(ends) } if ends.iter().any(|end| allowed.contains(end)) => {
                false
            }
            Kind::Weave(0x11..=0x18) | Kind::Neighbour => readable(frame),
            Kind::Weave(_) | Kind::Other { .. } => true,
        };
        let frame = self.frames.iter().find(misfit)?;
        let start = HEXLOWER.encode(&frame[..frame.len().min(96)]);
        let how = if readable(frame) {
            "in clear"
        } else {
            "unknown"
        };
        Some(format!(
            "{}: {how}: {:?}: {start}",
            self.place,
            classify(frame)
        ))
    }
}

/// What a frame is, as far as an outsider can tell.
#[derive(Debug)]
enum Kind {
    /// A UDP datagram of Weave's port, with its first byte: version and type.
    Weave(u8),
    /// ARP, ICMPv6 neighbour and router discovery, IGMP, MLD, or the ICMP answer to a datagram of Weave that found
    /// nobody.
    Neighbour,
    /// Anything else, with both addresses where it has some.
    Other { ends: Option<[IpAddr; 2]> },
}

/// The UDP port of Weave, and those to which the labs' routers translate it.
const PORTS: RangeInclusive<u16> = 6783..=6799;

/// Tells what an Ethernet frame is.
fn classify(frame: &[u8]) -> Kind {
    match (be16(frame, 12), frame.get(14..)) {
        (Some(0x0806), _) => Kind::Neighbour,
        (Some(0x0800), Some(packet)) if packet.len() >= 20 => classify_v4(packet),
        (Some(0x86dd), Some(packet)) if packet.len() >= 40 => classify_v6(packet),
        _ => Kind::Other { ends: None },
    }
}

/// Tells what an IPv4 packet is (RFC 791).
fn classify_v4(packet: &[u8]) -> Kind {
    let ends = [12, 16].map(|at| IpAddr::from(array::<4>(packet, at)));
    let body = packet
        .get(usize::from(packet[0] & 15) * 4..)
        .unwrap_or_default();
    let fragment = be16(packet, 6).unwrap_or(0) & 0x3fff != 0;
    match packet[9] {
        17 if !fragment => weave(body).unwrap_or(Kind::Other { ends: Some(ends) }),
        // Membership of groups (RFC 3376).
        2 => Kind::Neighbour,
        // Unreachable, while the node restarts, or redirected, while a host moves.
        1 if matches!(body.first(), Some(3 | 5)) && quotes(body, 20, classify_v4) => {
            Kind::Neighbour
        }
        _ => Kind::Other { ends: Some(ends) },
    }
}

/// Tells what an IPv6 packet is (RFC 8200).
fn classify_v6(packet: &[u8]) -> Kind {
    let ends = [8, 24].map(|at| IpAddr::from(array::<16>(packet, at)));
    let body = &packet[40..];
    // MLD reports stand behind a hop-by-hop header with a router alert (RFC 3810 section 5).
    let (next, body) = match packet[6] {
        0 if body.len() > 8 => (body[0], &body[8..]),
        next => (next, body),
    };
    match (next, body.first()) {
        (17, _) => weave(body).unwrap_or(Kind::Other { ends: Some(ends) }),
        // Router and neighbour discovery, MLD version 1 and 2.
        (58, Some(130..=136 | 143)) => Kind::Neighbour,
        (58, Some(1)) if quotes(body, 40, classify_v6) => Kind::Neighbour,
        _ => Kind::Other { ends: Some(ends) },
    }
}

/// Whether an ICMP error is about a packet that may be on the wire, of which it quotes the start (RFC 792, RFC 4443).
fn quotes(error: &[u8], header: usize, classify: fn(&[u8]) -> Kind) -> bool {
    let quoted = error.get(8..).filter(|quoted| quoted.len() >= header);
    quoted.is_some_and(|packet| !matches!(classify(packet), Kind::Other { .. }))
}

/// A UDP header and what follows: Weave's first byte if it is a datagram of Weave's port.
fn weave(udp: &[u8]) -> Option<Kind> {
    let ours = PORTS.contains(&be16(udp, 0)?) || PORTS.contains(&be16(udp, 2)?);
    ours.then(|| Kind::Weave(udp.get(8).copied().unwrap_or(0)))
}

/// The source and the payload of a datagram of Weave that goes to an address.
fn datagram_to(frame: &[u8], to: IpAddr) -> Option<(SocketAddr, Vec<u8>)> {
    if !matches!(classify(frame), Kind::Weave(_)) {
        return None;
    }
    let packet = &frame[14..];
    let (source, destination, header): (IpAddr, IpAddr, usize) = if packet[0] >> 4 == 4 {
        let [source, destination] = [12, 16].map(|at| array::<4>(packet, at).into());
        (source, destination, usize::from(packet[0] & 15) * 4)
    } else {
        let [source, destination] = [8, 24].map(|at| array::<16>(packet, at).into());
        (source, destination, 40)
    };
    let udp = packet.get(header..)?;
    let length = usize::from(be16(udp, 4)?);
    let from = SocketAddr::new(source, be16(udp, 0)?);
    (destination == to).then(|| (from, udp[8..length].to_vec()))
}

/// Whether a frame contains the marker.
fn readable(frame: &[u8]) -> bool {
    frame
        .iter()
        .enumerate()
        .any(|(at, &byte)| byte == MARKER[0] && frame[at..].starts_with(MARKER))
}

/// Some bytes of a packet that is known to be long enough.
fn array<const LEN: usize>(packet: &[u8], at: usize) -> [u8; LEN] {
    std::array::from_fn(|place| packet[at + place])
}

/// Two bytes as a number, if they are there.
fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Reads the frames of a pcap file of this machine's byte order (24 bytes of file header, 16 bytes before each frame:
/// seconds, fraction, bytes kept, bytes on the wire).
fn read_pcap(path: &Path) -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .expect("the capture is there");
    let mut frames = Vec::new();
    let mut rest = bytes.get(24..).expect("a pcap file has a header");
    while let Some(head) = rest.get(..16) {
        let kept = u32::from_ne_bytes(head[8..12].try_into().expect("4 bytes")) as usize;
        let on_wire = u32::from_ne_bytes(head[12..16].try_into().expect("4 bytes")) as usize;
        assert_eq!(kept, on_wire, "a frame was captured in part");
        let Some(frame) = rest.get(16..16 + kept) else {
            panic!("the capture ends inside a frame");
        };
        frames.push(frame.to_vec());
        rest = &rest[16 + kept..];
    }
    frames
}
