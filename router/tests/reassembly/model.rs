//! What must come out, said without knowing how it is done: a tunnel that carries every packet by itself.
//!
//! A byte of TCP comes out if its slice arrived, once. A datagram of UDP comes out, byte for byte as the sender's kernel
//! would have cut it, if all slices with a piece of it arrived; so does a packet that cannot be cut. They *must* if these
//! slices were there together: what came before a later packet of the lane was whole is not kept for what comes after.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::host::Sealed;
use crate::kernel::{CWR, FIN, PSH, Packet, TCP, ecn, place, u16_at, with_ecn};
use crate::traffic::{Item, Stream};

/// An item on its way.
#[derive(Debug)]
struct Flight {
    item: Item,
    ranges: Vec<Range<usize>>,
    /// Its slices that arrived, and whether they met congestion.
    arrived: BTreeMap<usize, bool>,
    /// The slices that are there together, and those that were.
    together: BTreeSet<usize>,
    before: Vec<BTreeSet<usize>>,
    /// The packets as the sender's kernel would have cut them, and how often each came out.
    packets: Vec<(Vec<u8>, usize)>,
}

impl Flight {
    fn slices(&self, range: &Range<usize>) -> Vec<usize> {
        let touches = |slice: &Range<usize>| slice.start < range.end && range.start < slice.end;
        let all = self.ranges.iter().enumerate();
        all.filter(|(_, slice)| touches(slice))
            .map(|(number, _)| number)
            .collect()
    }

    /// The source ports of its packets.
    fn ports(&self) -> Range<u16> {
        let first = &self.item.packets[0].bytes;
        let port = u16_at(first, place(first).transport) as u16;
        port..port + self.item.packets.len() as u16
    }

    fn met(&self, range: &Range<usize>) -> bool {
        let slices = self.slices(range);
        slices
            .iter()
            .any(|slice| self.arrived.get(slice) == Some(&true))
    }

    fn close(&mut self) {
        self.before.push(std::mem::take(&mut self.together));
    }

    /// The ECN bits of a packet that came out say what happened to it: CE if a slice of it met congestion, and only if
    /// one of the whole did.
    fn check_ecn(&self, found: u8, sent: u8, range: &Range<usize>) {
        if self.met(range) {
            assert_eq!(found, 3, "congestion was met");
        } else if found != sent {
            let any = self.arrived.values().any(|met| *met);
            assert!(any && found == 3, "{found} of {sent}");
        }
    }
}

#[derive(Debug)]
pub(crate) struct Model {
    streams: Vec<Stream>,
    flights: Vec<Flight>,
    /// How often each byte of each stream came out, and in what order.
    bytes: Vec<Vec<u8>>,
    ends: Vec<Vec<usize>>,
    demands: bool,
}

impl Model {
    pub(crate) fn new(streams: Vec<Stream>) -> Self {
        let bytes = streams.iter().map(|stream| vec![0; stream.len()]).collect();
        Self {
            ends: vec![Vec::new(); streams.len()],
            bytes,
            streams,
            flights: Vec::new(),
            demands: true,
        }
    }

    /// Datagrams may be lost though all of their bytes arrived: it took too long, or too much was on the way.
    pub(crate) fn demand_nothing(&mut self) {
        self.demands = false;
    }

    /// An item was sent; its number.
    pub(crate) fn send(&mut self, item: &Item, sealed: &[Sealed]) -> usize {
        let packets = item.packets.iter().flat_map(Packet::cut);
        self.flights.push(Flight {
            item: item.clone(),
            ranges: sealed.iter().map(|sealed| sealed.range.clone()).collect(),
            arrived: BTreeMap::new(),
            together: BTreeSet::new(),
            before: Vec::new(),
            packets: packets.map(|packet| (packet, 0)).collect(),
        });
        self.flights.len() - 1
    }

    pub(crate) fn arrive(&mut self, item: usize, slice: usize, congested: bool) {
        let flight = &mut self.flights[item];
        flight.arrived.insert(slice, congested);
        flight.together.insert(slice);
        if flight.arrived.len() == flight.ranges.len() {
            let lane = flight.item.lane;
            let older = self.flights[..=item].iter_mut();
            older
                .filter(|flight| flight.item.lane == lane)
                .for_each(Flight::close);
        }
    }

    /// Nothing is kept any longer for what may come.
    pub(crate) fn close(&mut self) {
        self.flights.iter_mut().for_each(Flight::close);
    }

    /// Something was written to the kernel.
    pub(crate) fn deliver(&mut self, written: &[u8]) {
        let packet = Packet::read(written);
        let parts = packet.cut();
        let place = place(&packet.bytes);
        let size = usize::from(packet.virtio.gso_size);
        assert!(size == 0 || packet.bytes.len() - place.payload > size);
        let port = u16_at(&packet.bytes, place.transport) as u16;
        let stream = self.streams.iter().position(|s| s.head.port == port);
        match stream {
            Some(stream) => self.deliver_stream(stream, &packet),
            None => parts.iter().for_each(|part| self.deliver_part(port, part)),
        }
    }

    fn deliver_part(&mut self, port: u16, part: &[u8]) {
        for flight in &mut self.flights {
            let sent = &flight.packets[0].0;
            let (ports, sent) = (flight.ports(), ecn(sent));
            if !ports.contains(&port) {
                continue;
            }
            let unmarked = with_ecn(part, sent);
            let mut packets = flight.packets.iter();
            let found = packets.position(|(packet, _)| *packet == unmarked);
            let number = found.expect("a packet as it was sent");
            let range = flight.item.range(number);
            flight.check_ecn(ecn(part), sent, &range);
            flight.packets[number].1 += 1;
            return;
        }
        panic!("nobody sent {part:02x?}");
    }

    fn deliver_stream(&mut self, number: usize, packet: &Packet) {
        let stream = &self.streams[number];
        let bytes = &packet.bytes[..];
        let place = place(bytes);
        assert_eq!(place.protocol, TCP);
        let payload = &bytes[place.payload..];
        let at = place.transport + 4;
        let sequence = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let first = stream.head.tcp.as_ref().unwrap().sequence;
        let start = sequence.wrapping_sub(first) as usize;
        let end = start + payload.len();
        let delivered = &mut self.bytes[number][start..end];
        for (at, got) in delivered.iter_mut().enumerate() {
            *got += 1;
            assert_eq!(
                payload[at],
                crate::traffic::byte(stream.head.port, start + at)
            );
        }
        self.ends[number].push(end);
        if payload.len() > stream.segment.into() {
            assert_eq!(packet.virtio.gso_size, stream.segment);
        }
        self.check_headers(number, packet, start..end);
    }

    /// The headers are those of the super-packet that the bytes come from, but for what tells their place in it.
    fn check_headers(&self, number: usize, packet: &Packet, range: Range<usize>) {
        let stream = &self.streams[number];
        let (bytes, place) = (&packet.bytes, place(&packet.bytes));
        let mut first = None;
        let mut pushed = false;
        let mut start = 0;
        let mut last = 0;
        for (part, (len, flags)) in stream.parts.iter().enumerate() {
            let part_range = start..start + len;
            if part_range.contains(&range.start) {
                first = Some((part, start));
            }
            let is_whole = range.start < part_range.end && part_range.end <= range.end;
            pushed |= is_whole && flags & PSH != 0;
            if part_range.contains(&(range.end - 1)) {
                last = part;
            }
            start += len;
        }
        let (part, start) = first.unwrap();
        let flags = bytes[place.transport + 13];
        let (own, ends) = (stream.parts[part].1, stream.parts[last].1);
        let at_end = stream.parts[..=last].iter().map(|p| p.0).sum::<usize>() == range.end;
        assert_eq!(flags & CWR != 0, own & CWR != 0 && start == range.start);
        assert_eq!(flags & FIN != 0, ends & FIN != 0 && at_end);
        assert_eq!(flags & PSH != 0, pushed && at_end);
        assert_eq!(flags & !(CWR | FIN | PSH), own & !(CWR | FIN | PSH));
        let flights = || {
            let of_stream = self.flights.iter();
            of_stream.filter(|flight| matches!(flight.item.stream, Some((of, _)) if of == number))
        };
        for flight in flights() {
            let (_, from) = flight.item.stream.unwrap();
            let to = from + flight.item.payload().len();
            if from < range.end && range.start < to {
                let part = range.start.saturating_sub(from)..range.end.min(to) - from;
                flight.check_ecn(ecn(bytes), stream.head.ecn, &part);
            }
        }
        let sent = &flights().nth(part).unwrap().item.packets[0].bytes;
        assert_eq!(place, crate::kernel::place(sent));
        let t = place.transport;
        // Length and identification, ECN, sums, sequence and flags apart.
        let same = |range: Range<usize>| assert_eq!(bytes[range.clone()], sent[range]);
        if bytes[0] >> 4 == 4 {
            let segments = (range.start - start) / usize::from(stream.segment);
            let id = u16_at(sent, 4) as u16;
            assert_eq!(u16_at(bytes, 4) as u16, id.wrapping_add(segments as u16));
            same(6..10);
            same(12..t + 4);
        } else {
            same(2..4);
            same(6..t + 4);
        }
        same(t + 8..t + 13);
        same(t + 14..t + 16);
        same(t + 18..place.payload);
    }

    /// Whether each stream's bytes came out in order.
    pub(crate) fn check_order(&self) {
        for ends in &self.ends {
            assert!(ends.is_sorted(), "{ends:?}");
        }
    }

    /// When all is over: what had to come out did, and nothing twice.
    pub(crate) fn check(&self) {
        for flight in &self.flights {
            if let Some((stream, start)) = flight.item.stream {
                for (number, range) in flight.ranges.iter().enumerate() {
                    let came = u8::from(flight.arrived.contains_key(&number));
                    let got = &self.bytes[stream][start + range.start..start + range.end];
                    assert!(got.iter().all(|got| *got == came), "slice {number}: {came}");
                }
                continue;
            }
            for (number, (_, got)) in flight.packets.iter().enumerate() {
                let slices = flight.slices(&flight.item.range(number));
                let may = slices.iter().all(|s| flight.arrived.contains_key(s));
                let of = |set: &BTreeSet<usize>| slices.iter().all(|slice| set.contains(slice));
                let must = self.demands && flight.before.iter().any(of);
                assert!(
                    (usize::from(must)..=usize::from(may)).contains(got),
                    "datagram {number} came out {got} times; must {must}, may {may}"
                );
            }
        }
    }
}
