//! Packets as containers see them, for whoever asks: of one container, or between this node and one other member.
//!
//! A container's are taken at the host's end of its pair; those with a member at the TUN device, by who owns their
//! addresses. Both are inside of the encryption. One thread reads and one short queue lies between it and the reader; a
//! reader that is too slow misses packets, and no packet waits for it.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::Bytes;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use weave_linux::netlink::Netlink;
use weave_linux::sniff::{Place, Sniffer};
use weave_model::api::{Code, Refusal};
use weave_model::{ContainerName, IfName, NodeId};
use weave_router::core::view::Owner;
use weave_router::driver::Router;

use super::holders::owner_of;
use super::host::TUN;
use super::pcap::{self, LinkType};
use super::services::Known;
use super::{Node, Published, Shared};

/// How often the thread looks whether somebody still reads.
const LOOK: Duration = Duration::from_millis(200);

/// How many packets may wait for the reader.
const WAITING: usize = 1024;

/// `GET /v1/capture`: what is to be captured.
#[derive(Clone, Debug, Deserialize)]
pub struct CaptureQuery {
    /// A container of this node.
    pub container: Option<ContainerName>,
    /// Which of its interfaces; the first when absent.
    pub ifname: Option<IfName>,
    /// Or a member: its name, or the first digits of its id.
    pub peer: Option<String>,
    /// How many packets; without end when absent.
    pub count: Option<u64>,
}

/// Which packets of a device are wanted.
enum Wanted {
    All,
    /// Those with an address that this member owns, or that floats and is with it.
    With(Arc<Router>, watch::Receiver<Known>, NodeId),
}

impl Node {
    /// Begins to capture: a pcap file, in pieces, until its receiver is dropped.
    pub async fn capture(&self, query: CaptureQuery) -> Result<mpsc::Receiver<Bytes>, Refusal> {
        let (device, link, wanted) = match (&query.container, &query.peer) {
            (Some(name), None) => {
                let device = self.outer_end(name, query.ifname.as_ref())?;
                (device, LinkType::Ethernet, Wanted::All)
            }
            (None, Some(peer)) => {
                let member = self.member(peer)?;
                let Shared {
                    router, services, ..
                } = &*self.shared;
                let wanted = Wanted::With(Arc::clone(router), services.clone(), member.id);
                (TUN.to_owned(), LinkType::Raw, wanted)
            }
            _ => {
                let cause = "either a container or a peer is to be captured";
                return Err(Refusal::new(Code::Invalid, cause, "name one of them"));
            }
        };
        let failed = |cause: String| Refusal::new(Code::Failed, cause, "look at the log of weaved");
        let found = async {
            let name = device
                .parse()
                .map_err(|_| failed(format!("{device} is no device")))?;
            let netlink = Netlink::open().map_err(|error| failed(error.to_string()))?;
            let link = netlink
                .link(&name)
                .await
                .map_err(|error| failed(error.to_string()))?;
            link.ok_or_else(|| failed(format!("the device {device} is gone")))
        };
        let place = Place::Device(found.await?.index);
        let sniffer = Sniffer::open(place, LOOK)
            .map_err(|error| failed(format!("cannot capture at {device}: {error}")))?;
        let (pieces, reader) = mpsc::channel(WAITING);
        // The queue is empty and has room.
        let _ = pieces.try_send(pcap::file_header(link).into());
        let count = query.count.unwrap_or(u64::MAX);
        thread::spawn(move || copy(&sniffer, &wanted, count, &pieces));
        Ok(reader)
    }

    /// The host's end of a container's pair.
    fn outer_end(&self, name: &ContainerName, ifname: Option<&IfName>) -> Result<String, Refusal> {
        let Published { book, .. } = self.shared.published.borrow().clone();
        let mut ends = book.interfaces(name);
        let end = ends.find(|entry| ifname.is_none_or(|ifname| entry.attachment.ifname == *ifname));
        end.map(|entry| entry.attachment.host_ifname.to_string())
            .ok_or_else(|| {
                let cause =
                    format!("no such interface of a container {name} is attached to this node");
                Refusal::new(
                    Code::NotFound,
                    cause,
                    "see what is attached with: weavectl ps -o wide",
                )
            })
    }
}

/// Copies packets until there were enough, nobody reads, or the device is gone.
fn copy(sniffer: &Sniffer, wanted: &Wanted, count: u64, pieces: &mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; pcap::LONGEST];
    let mut left = count;
    while left > 0 && !pieces.is_closed() {
        let seen = match sniffer.recv(&mut buffer) {
            Ok(seen) => seen,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return tracing::debug!(%error, "a capture ends"),
        };
        let packet = &mut buffer[..seen.len];
        if !wanted.is(packet) {
            continue;
        }
        pcap::finish(packet, &seen.header);
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        left -= 1;
        if pieces
            .blocking_send(pcap::record(packet, at).into())
            .is_err()
        {
            return;
        }
    }
}

impl Wanted {
    fn is(&self, packet: &[u8]) -> bool {
        let Self::With(router, known, member) = self else {
            return true;
        };
        let view = router.view();
        let floating = Arc::clone(&known.borrow().floating);
        let owner = |ip| owner_of(&view, &view.range?, &floating, ip);
        let is_theirs = |ip| match owner(ip) {
            Some(Owner::Member(place)) => view.members[place as usize].id == *member,
            _ => false,
        };
        ends(packet).is_some_and(|ends| ends.into_iter().any(is_theirs))
    }
}

/// Source and destination of an IP packet (RFC 791, RFC 8200).
fn ends(packet: &[u8]) -> Option<[IpAddr; 2]> {
    let v4 = |at: usize| Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into());
    let v6 = |at: usize| Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into());
    match packet.first()? >> 4 {
        4 => Some([v4(12)?, v4(16)?]),
        6 => Some([v6(8)?, v6(24)?]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_packet_are_found_and_junk_has_none() {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[12..20].copy_from_slice(&[10, 32, 0, 2, 10, 47, 0, 1]);
        let found = ends(&packet).unwrap().map(|ip| ip.to_string());
        assert_eq!(found, ["10.32.0.2", "10.47.0.1"]);
        packet[0] = 0x60;
        packet[23] = 9;
        assert_eq!(ends(&packet).unwrap()[0].to_string(), "::a20:2:a2f:1:0:9");
        assert_eq!(ends(&packet[..39]), None);
        assert_eq!(ends(&[0x45]), None);
        assert_eq!(ends(&[]), None);
    }
}
