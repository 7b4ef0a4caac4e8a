//! Broadcast and multicast: taken from the containers' interfaces, carried to every member, put on the interfaces of
//! the same network there.
//!
//! IP only. What manages the link itself stays on it: IGMP, MLD, neighbour discovery and what a DHCP server says are
//! never carried. Each container may send [`RATE`] such packets a second.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use weave_linux::packet::{Heard, PacketSocket};
use weave_linux::poll::{Bell, readable};
use weave_linux::tun::gso;
use weave_linux::udp::UdpSocket;
use weave_model::Drop;

use super::inner::{Inner, protocol};
use super::routes::{Port, Routes};
use super::spread::Spread;
use super::stats::Counters;
use super::{Input, csum};
use crate::time::Start;

/// Packets a second that one container may send to groups.
pub const RATE: u32 = 1000;
/// How many it may send at once.
pub const BURST: u32 = 256;

/// The socket that reaches the containers' interfaces.
#[derive(Debug)]
pub struct GroupPorts(PacketSocket);

impl GroupPorts {
    /// Opens the socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_RAW` and `CAP_NET_ADMIN`.
    pub fn open() -> io::Result<Self> {
        Ok(Self(PacketSocket::open(Duration::from_millis(100))?))
    }

    /// Puts a packet on the interface of every container of a network but the one it came from.
    ///
    /// # Errors
    /// [`Drop::NotOurs`] if the destination is no group, [`Drop::LinkScope`] if the packet manages the link,
    /// [`Drop::OtherNetwork`] if the source is in another network.
    pub fn deliver(
        &self,
        routes: &Routes,
        network: u16,
        inner: &Inner,
        packet: &[u8],
        from: Option<u32>,
    ) -> Result<(), Drop> {
        if routes.network_of(inner.source) != network {
            return Err(Drop::OtherNetwork);
        }
        let broadcast = routes.broadcast(network).ok_or(Drop::NotOurs)?;
        let mac = carried(broadcast, packet, inner)?;
        for (interface, port) in &routes.ports {
            if port.network == network && Some(*interface) != from {
                // A container that was just detached is no error; the others must not suffer from it.
                let _ = self.0.send(*interface, mac, packet);
            }
        }
        Ok(())
    }
}

/// What the thread for group packets works with.
#[derive(Debug)]
pub struct Group {
    /// The containers' interfaces.
    pub ports: Arc<GroupPorts>,
    /// Sends on lane 0.
    pub main: Arc<UdpSocket>,
    /// The current routes.
    pub routes: Arc<ArcSwap<Routes>>,
    /// This thread's counters.
    pub counters: Arc<Counters>,
    /// Tells the control core what it must know.
    pub inputs: SyncSender<Input>,
    /// Ends the thread.
    pub stop: Arc<Bell>,
    /// The clock's start.
    pub start: Start,
}

impl Group {
    /// Runs until the bell rings.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub fn run(self) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        let main = Arc::clone(&self.main);
        let spread = Spread::new(main, Arc::clone(&self.counters), self.start);
        let mut budgets = HashMap::new();
        loop {
            let ready = readable(&[self.ports.0.as_fd(), self.stop.as_fd()], None)?;
            if ready & 2 != 0 {
                return Ok(());
            }
            let Ok(heard) = self.ports.0.recv(&mut buffer) else {
                continue;
            };
            let routes = self.routes.load_full();
            let Some(port) = routes.ports.get(&heard.interface) else {
                continue;
            };
            let budget = budgets
                .entry(heard.interface)
                .or_insert_with(|| Budget::full(Instant::now()));
            let len = heard.len.min(buffer.len());
            self.counters.packet(len);
            let result = budget
                .take(Instant::now())
                .and_then(|()| self.packet(&routes, port, &heard, &mut buffer[..len], &spread));
            if let Err(reason) = result {
                self.counters.dropped(reason);
            }
            if budgets.len() > 2 * self.routes.load().ports.len() + 16 {
                budgets.clear();
            }
        }
    }

    fn packet(
        &self,
        routes: &Routes,
        port: &Port,
        heard: &Heard,
        packet: &mut [u8],
        spread: &Spread,
    ) -> Result<(), Drop> {
        let inner = Inner::parse(packet)?;
        let range = routes.range.as_ref().ok_or(Drop::NoRoute)?;
        let broadcast = routes.broadcast(port.network).ok_or(Drop::NoRoute)?;
        carried(broadcast, packet, &inner)?;
        if range.offset(inner.source) != Some(port.offset) {
            return Err(Drop::ForeignSource);
        }
        if heard.header.gso_type != gso::NONE {
            return Err(Drop::TooBig);
        }
        if heard.header.needs_csum() {
            csum::settle(packet, &heard.header, &inner)?;
        }
        self.ports
            .deliver(routes, port.network, &inner, packet, Some(heard.interface))?;
        spread.begin(routes, port.network, packet);
        Ok(())
    }
}

/// What one container may still send.
#[derive(Debug)]
struct Budget {
    tokens: f64,
    at: Instant,
}

impl Budget {
    fn full(now: Instant) -> Self {
        Self {
            tokens: BURST.into(),
            at: now,
        }
    }

    fn take(&mut self, now: Instant) -> Result<(), Drop> {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(RATE);
        self.tokens = (self.tokens + gained).min(BURST.into());
        self.at = now;
        if self.tokens < 1.0 {
            return Err(Drop::RateLimited);
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

/// The link-level address for a packet that may be carried: asked of what containers send and of what members send, who
/// could otherwise answer for the gateway of every container (RFC 4861 §7.2.5).
fn carried(broadcast: Ipv4Addr, packet: &[u8], inner: &Inner) -> Result<[u8; 6], Drop> {
    if is_link_control(packet, inner) {
        return Err(Drop::LinkScope);
    }
    group_mac(broadcast, inner.destination).ok_or(Drop::NotOurs)
}

/// The link-level address for a group (RFC 1112 §6.4, RFC 2464 §7); `None` for anything else.
fn group_mac(broadcast: Ipv4Addr, destination: IpAddr) -> Option<[u8; 6]> {
    match destination {
        IpAddr::V4(v4) if v4 == Ipv4Addr::BROADCAST || v4 == broadcast => Some([0xff; 6]),
        IpAddr::V4(v4) if v4.is_multicast() => {
            let [_, b, c, d] = v4.octets();
            Some([0x01, 0x00, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(v6) if v6.is_multicast() => {
            let [.., a, b, c, d] = v6.octets();
            Some([0x33, 0x33, a, b, c, d])
        }
        _ => None,
    }
}

/// IGMP; of ICMPv6 multicast listener discovery (130 to 132, 143) and neighbour discovery (133 to 137); and of UDP what
/// is for clients of DHCP (RFC 2131 §4.1, RFC 8415 §7.2), who would believe any container about addresses and routes.
fn is_link_control(packet: &[u8], inner: &Inner) -> bool {
    match inner.protocol {
        protocol::IGMP => true,
        protocol::ICMPV6 => packet
            .get(inner.transport)
            .is_some_and(|kind| matches!(kind, 130..=137 | 143)),
        protocol::UDP => packet
            .get(inner.transport + 2..)
            .and_then(<[u8]>::first_chunk)
            .is_some_and(|port| matches!(u16::from_be_bytes(*port), 68 | 546)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use etherparse::PacketBuilder;

    use super::*;

    const BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 47, 255, 255);

    #[test]
    fn a_member_s_neighbour_advertisement_is_not_carried() {
        let all_nodes = "ff02::1".parse::<Ipv6Addr>().unwrap().octets();
        let source = "fd00::2".parse::<Ipv6Addr>().unwrap().octets();
        let kind = |kind| {
            let mut packet = Vec::new();
            PacketBuilder::ipv6(source, all_nodes, 255)
                .icmpv6_raw(kind, 0, [0; 4])
                .write(&mut packet, &[0; 16])
                .unwrap();
            carried(BROADCAST, &packet, &Inner::parse(&packet).unwrap())
        };
        for link_control in [130, 131, 132, 133, 134, 135, 136, 137, 143] {
            assert_eq!(kind(link_control), Err(Drop::LinkScope));
        }
        assert_eq!(kind(128), Ok([0x33, 0x33, 0, 0, 0, 1]));
    }

    #[test]
    fn a_server_of_dhcp_is_not_carried() {
        let offered = |port| {
            let mut packet = Vec::new();
            PacketBuilder::ipv4([10, 32, 0, 2], [255; 4], 64)
                .udp(67, port)
                .write(&mut packet, &[0; 300])
                .unwrap();
            carried(BROADCAST, &packet, &Inner::parse(&packet).unwrap())
        };
        assert_eq!(offered(68), Err(Drop::LinkScope));
        assert_eq!(offered(67), Ok([0xff; 6]));
        let all_nodes = "ff02::1".parse::<Ipv6Addr>().unwrap().octets();
        let source = "fd00::2".parse::<Ipv6Addr>().unwrap().octets();
        let mut packet = Vec::new();
        PacketBuilder::ipv6(source, all_nodes, 255)
            .udp(547, 546)
            .write(&mut packet, &[0; 16])
            .unwrap();
        let inner = Inner::parse(&packet).unwrap();
        assert_eq!(carried(BROADCAST, &packet, &inner), Err(Drop::LinkScope));
    }

    #[test]
    fn groups_have_link_addresses() {
        let mac = |text: &str| group_mac(BROADCAST, text.parse().unwrap());
        assert_eq!(mac("10.47.255.255"), Some([0xff; 6]));
        assert_eq!(mac("255.255.255.255"), Some([0xff; 6]));
        assert_eq!(mac("239.129.2.3"), Some([1, 0, 0x5e, 1, 2, 3]));
        assert_eq!(mac("ff02::1:2"), Some([0x33, 0x33, 0, 1, 0, 2]));
        assert_eq!(mac("10.32.0.2"), None);
    }

    #[test]
    fn a_flood_is_cut_to_the_rate() {
        let start = Instant::now();
        let mut budget = Budget::full(start);
        let passed = (0..10_000_u64)
            .filter(|i| budget.take(start + Duration::from_micros(i * 100)).is_ok())
            .count();
        let allowed = (BURST + RATE) as usize;
        assert!(
            (allowed - 2..=allowed).contains(&passed),
            "{passed} of {allowed}"
        );
    }
}
