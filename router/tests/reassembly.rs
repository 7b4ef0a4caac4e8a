//! What comes out of the path is what a tunnel that carries every packet by itself would have delivered, whatever was
//! lost, doubled or overtaken on the way: packets as kernels make them are cut and sealed by one host, and opened and put
//! together by the other; what it writes is cut as its kernel would cut it, and held against a model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "reassembly/host.rs"]
mod host;
#[path = "reassembly/kernel.rs"]
mod kernel;
#[path = "reassembly/model.rs"]
mod model;
#[path = "reassembly/traffic.rs"]
mod traffic;

use std::time::Duration;

use host::{Hosts, LANES, Sealed};
use kernel::{ACK, CWR, FIN, PSH, Packet};
use model::Model;
use proptest::collection::vec;
use proptest::prelude::*;
use traffic::{Head, Item, Left, Stream, Tcp, datagrams, plain, together};
use weave_model::Drop as Reason;

/// Longer than anything waits.
const LONG: Duration = Duration::from_millis(50);

/// Two hosts, the model of what they must do, and what is on the way between them.
struct Run {
    hosts: Hosts,
    model: Model,
    sent: Vec<Vec<Sealed>>,
    items: Vec<Item>,
}

/// A slice on the way: of which item, which of its slices, and whether it meets congestion.
#[derive(Clone, Copy, Debug)]
struct Step {
    item: usize,
    slice: usize,
    congested: bool,
}

impl Run {
    fn new(traffic: &Traffic) -> Self {
        let mut hosts = Hosts::new();
        let mut model = Model::new(traffic.streams.clone());
        let mut sent = Vec::new();
        for item in &traffic.items {
            sent.push(hosts.seal(item, traffic.datagram));
            model.send(item, &sent[sent.len() - 1]);
        }
        Self {
            hosts,
            model,
            sent,
            items: traffic.items.clone(),
        }
    }

    /// All slices in the order in which they were sent.
    fn steps(&self) -> Vec<Step> {
        let slices = |(item, sealed): (usize, &Vec<Sealed>)| {
            (0..sealed.len()).map(move |slice| Step {
                item,
                slice,
                congested: false,
            })
        };
        self.sent.iter().enumerate().flat_map(slices).collect()
    }

    fn arrive(&mut self, step: Step) {
        let bytes = &self.sent[step.item][step.slice].bytes;
        let congested = step.congested && kernel::ecn(&self.items[step.item].packets[0].bytes) != 0;
        assert_eq!(self.hosts.receive(bytes, congested), Ok(()));
        self.model.arrive(step.item, step.slice, congested);
        self.heed();
    }

    /// The same datagram once more changes nothing.
    fn arrive_again(&mut self, step: Step) {
        let bytes = &self.sent[step.item][step.slice].bytes;
        assert_eq!(self.hosts.receive(bytes, true), Err(Reason::Replay));
    }

    fn heed(&mut self) {
        for written in self.hosts.take() {
            self.model.deliver(&written);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.hosts.pass(time);
        self.heed();
    }

    /// Nothing more comes.
    fn end(mut self) -> Model {
        self.pass(LONG);
        assert!(!self.hosts.is_waiting());
        self.model.close();
        self.model.check();
        self.model
    }
}

/// What is sent, and how large datagrams may be.
#[derive(Clone, Debug)]
struct Traffic {
    datagram: usize,
    streams: Vec<Stream>,
    items: Vec<Item>,
}

impl Traffic {
    /// Both, the other one later and on a lane of its own choice.
    fn beside(&self, other: &Self, lane: u8) -> Self {
        let mut both = self.clone();
        for item in &other.items {
            let mut item = item.clone();
            item.lane = lane;
            item.stream = item.stream.map(|(_, start)| (self.streams.len(), start));
            both.items.push(item);
        }
        both.streams.extend(other.streams.iter().cloned());
        both
    }
}

/// The ports of flows lie so far apart that those of packets that go together fit between them.
fn port(flow: usize) -> u16 {
    1000 + 16 * flow as u16
}

/// Every order of every subset of `0..count`.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    let mut at = 0;
    while at < all.len() {
        let begun: Vec<usize> = all[at].clone();
        let more = (0..count).filter(|next| !begun.contains(next));
        all.extend(more.map(|next| [&begun[..], &[next]].concat()));
        at += 1;
    }
    all
}

/// Items of `slices` slices each: every kind, cut at different places, with and without options.
fn small_items(flow: usize, slices: usize) -> Vec<Traffic> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        for (extras, ecn) in [(vec![], 0), (vec![0, 1, 4], 2)] {
            let head = |tcp| Head {
                v6,
                extras: extras.clone(),
                ecn,
                id: 65_534,
                may_fragment: false,
                port: port(flow),
                tcp,
            };
            // Of these headers and bytes a datagram carries between 970 and 1110.
            let len = [700, 1500, 2450, 3400][slices - 1];
            for segment in [len / 5, len / 2, len * 2 / 3] {
                let segment = segment as u16;
                let tcp = Tcp {
                    sequence: u32::MAX - 900,
                    flags: ACK | PSH | FIN | CWR,
                    options: 3,
                };
                let stream = Stream {
                    head: head(Some(tcp)),
                    segment,
                    parts: vec![(len, ACK | PSH | FIN | CWR)],
                };
                let items = stream.items(0, 0);
                all.push((vec![stream], items));
                all.push((vec![], vec![datagrams(&head(None), 0, segment, len)]));
            }
            for left in [Left::Nothing, Left::Checksum] {
                all.push((vec![], vec![plain(&head(None), 0, left, &[len])]));
            }
        }
    }
    let traffic = all.into_iter().map(|(streams, items)| Traffic {
        datagram: 1152,
        streams,
        items,
    });
    traffic.collect()
}

/// Delivers the slices of `order`; a bit of `marks` for each says whether it meets congestion.
fn walk(traffic: &Traffic, order: &[usize], marks: usize) {
    let mut run = Run::new(traffic);
    let steps = run.steps();
    for (number, at) in order.iter().enumerate() {
        let congested = marks >> number & 1 == 1;
        run.arrive(Step {
            congested,
            ..steps[*at]
        });
    }
    run.hosts.flush();
    run.heed();
    let all = run.items.len() == 1 && order.len() == steps.len();
    let waits = run.hosts.is_waiting();
    assert!(
        !(all && waits),
        "what is whole waits for nothing: {order:?}"
    );
    run.end().check();
}

#[test]
fn one_packet_with_every_subset_of_its_slices_in_every_order() {
    for slices in 1..=4 {
        for traffic in small_items(0, slices) {
            let count = Run::new(&traffic).steps().len();
            assert_eq!(count, slices);
            for (number, order) in orders(count).iter().enumerate() {
                walk(&traffic, order, number % 16);
            }
        }
    }
}

#[test]
fn two_packets_with_every_subset_of_their_slices_in_every_order() {
    for (a, b) in [(2, 2), (3, 1), (1, 3), (2, 1), (1, 2)] {
        let (first, second) = (small_items(0, a), small_items(1, b));
        for (number, first) in first.iter().enumerate() {
            for other in 0..3 {
                let second = &second[(number * 5 + other * 11) % second.len()];
                let traffic = first.beside(second, u8::from(other == 2));
                for (number, order) in orders(a + b).iter().enumerate() {
                    walk(&traffic, order, number % 16);
                }
            }
        }
    }
}

#[test]
fn what_goes_together_is_written_as_one() {
    let head = |v6| Head {
        v6,
        extras: vec![],
        ecn: 2,
        id: 65_534,
        may_fragment: true,
        port: port(0),
        tcp: None,
    };
    let written = |item: Item| {
        let traffic = Traffic {
            datagram: 1472,
            streams: vec![],
            items: vec![item],
        };
        let mut run = Run::new(&traffic);
        let sealed = run.sent[0][0].bytes.clone();
        run.hosts.receive(&sealed, true).unwrap();
        let written = run.hosts.take();
        written
            .iter()
            .map(|bytes| Packet::read(bytes).cut().len())
            .collect::<Vec<_>>()
    };
    for v6 in [false, true] {
        let sent = |left, lengths: &[usize]| written(together(&head(v6), 0, left, lengths));
        assert_eq!(sent(Left::Checksum, &[64; 9]), [9]);
        assert_eq!(sent(Left::Checksum, &[64, 64, 20, 64]), [3, 1]);
        assert_eq!(sent(Left::Checksum, &[20, 64, 64]), [1, 2]);
        assert_eq!(sent(Left::Checksum, &[1; 70]), [64, 6]);
        assert_eq!(sent(Left::Checksum, &[0, 0]), [1, 1], "nothing to cut");
        assert_eq!(
            sent(Left::Nothing, &[64, 64]),
            [1, 1],
            "the sum is the sender's"
        );
        let others = plain(&head(v6), 0, Left::Checksum, &[64, 64]);
        assert_eq!(written(others), [1, 1], "two flows");
    }
    let mut unnumbered = together(&head(false), 0, Left::Checksum, &[64; 2]);
    let Item { packets, .. } = &mut unnumbered;
    packets[1] = Head {
        id: 5,
        ..head(false)
    }
    .packet(&[1; 64], Left::Checksum);
    assert_eq!(
        written(unnumbered),
        [1, 1],
        "the kernel would number it otherwise"
    );
}

/// The IP part of a flow's headers.
fn any_head(number: usize) -> impl Strategy<Value = Head> {
    let fields = (any::<bool>(), vec(0..6_u8, 0..=10), 0..4_u8);
    (fields, any::<(u16, bool)>()).prop_map(move |(fields, (id, may_fragment))| {
        let (v6, mut extras, ecn) = fields;
        if v6 {
            extras.truncate(3);
        }
        Head {
            v6,
            extras,
            ecn,
            id,
            may_fragment,
            port: port(number),
            tcp: None,
        }
    })
}

/// So many bytes or a little more, in full segments: packets that may be joined.
fn full(len: usize, segment: u16) -> usize {
    len.next_multiple_of(segment.into()).min(60_000)
}

/// A flow of any kind: its stream, if it is one, and what it sends.
fn flow(number: usize) -> impl Strategy<Value = (Option<Stream>, Vec<Item>)> {
    let len = || prop_oneof![3 => 1..=3000_usize, 2 => 1..=20_000_usize, 1 => 1..=60_000_usize];
    let head = (any_head(number), any::<u32>(), 0..=10_u8);
    let parts = vec((len(), any::<u8>()), 1..=4);
    let segment = prop_oneof![Just(1448), Just(536), 64..9000_u16];
    let small = vec(1..=200_usize, 2..=8);
    let kind = (0..6_u8, 1..2000_u16, any::<bool>(), 0..LANES);
    (head, parts, segment, small, kind).prop_map(move |(head, parts, segment, small, kind)| {
        let (mut head, sequence, options) = head;
        let (kind, size, checksum, lane) = kind;
        head.tcp = (kind < 2 || kind > 2 && sequence % 2 == 0).then_some(Tcp {
            sequence,
            flags: ACK,
            options,
        });
        let left = if checksum {
            Left::Checksum
        } else {
            Left::Nothing
        };
        let long = parts[0].0;
        match kind {
            0 | 1 => {
                let flags = if kind == 0 { PSH | FIN | CWR } else { PSH };
                let parts = parts.iter().map(|(len, set)| match kind {
                    0 => (*len, ACK | set & flags),
                    _ => (full(*len, segment), ACK | set & flags),
                });
                let parts = parts.collect();
                let stream = Stream {
                    head,
                    segment,
                    parts,
                };
                let items = stream.items(0, lane);
                (Some(stream), items)
            }
            2 => {
                let len = long.min(128 * usize::from(size));
                (None, vec![datagrams(&head, lane, size, len)])
            }
            3 => (None, vec![plain(&head, lane, left, &[long])]),
            4 => (None, vec![plain(&head, lane, left, &small)]),
            _ => {
                head.tcp = None;
                let same = |len: &usize| {
                    if len.is_multiple_of(4) {
                        *len
                    } else {
                        small[0]
                    }
                };
                let lengths: Vec<usize> = small.iter().map(same).collect();
                (None, vec![together(&head, lane, left, &lengths)])
            }
        }
    })
}

/// Several flows; those that take turns, and those that wait for one another.
fn traffic() -> impl Strategy<Value = Traffic> {
    let flows = (flow(0), flow(1), flow(2), flow(3), flow(4));
    let datagram = prop_oneof![Just(1152_usize), Just(1472_usize), 1152..9000_usize];
    (flows, 1..=5_usize, any::<bool>(), datagram).prop_map(|(flows, count, turns, datagram)| {
        let (a, b, c, d, e) = flows;
        let (mut streams, mut items) = (Vec::new(), Vec::new());
        for (stream, sent) in [a, b, c, d, e].into_iter().take(count) {
            items.extend(sent.into_iter().enumerate().map(|(turn, mut item)| {
                item.stream = item.stream.map(|(_, start)| (streams.len(), start));
                (turn, item)
            }));
            streams.extend(stream);
        }
        if turns {
            items.sort_by_key(|(turn, _)| *turn);
        }
        Traffic {
            datagram,
            streams,
            items: items.into_iter().map(|(_, item)| item).collect(),
        }
    })
}

/// What the network does to one datagram after the other.
#[derive(Clone, Copy, Debug)]
struct Fate {
    /// Lost if below the share that is, of 100.
    luck: u8,
    place: u16,
    congested: bool,
    again: bool,
    wait: u16,
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = (0..100_u8, any::<u16>(), any::<(bool, bool)>(), 0..1500_u16);
    let fate = fate.prop_map(|(luck, place, (congested, again), wait)| Fate {
        luck,
        place,
        congested,
        again,
        wait,
    });
    vec(fate, 50..300)
}

/// The steps that are not lost, each with what else becomes of it.
fn fated(steps: Vec<Step>, fates: &[Fate], lost: u8) -> Vec<(Step, Fate)> {
    let met = steps.into_iter().zip(fates.iter().cycle());
    let kept = met.filter(|(_, fate)| fate.luck >= lost);
    kept.map(|(step, fate)| {
        let congested = fate.congested && fate.luck % 8 == 0;
        (Step { congested, ..step }, *fate)
    })
    .collect()
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(400))]

    /// Nothing overtakes: all that the slices that arrived can give comes out, in order.
    #[test]
    fn in_order_with_losses(traffic in traffic(), fates in fates(), lost in prop_oneof![Just(1), Just(10), Just(50)]) {
        let mut run = Run::new(&traffic);
        for (step, fate) in fated(run.steps(), &fates, lost) {
            run.arrive(step);
            if fate.again {
                run.arrive_again(step);
            }
            if fate.place % 16 == 0 {
                run.hosts.flush();
                run.heed();
            }
        }
        let model = run.end();
        model.check_order();
    }

    /// Up to two packets of each lane arrive in any order: all that was there together comes out.
    #[test]
    fn packets_that_arrive_mixed(traffic in traffic(), fates in fates(), lost in prop_oneof![Just(0), Just(5), Just(50)]) {
        let mut run = Run::new(&traffic);
        let mut steps = fated(run.steps(), &fates, lost);
        let mut round = vec![0; run.items.len()];
        let mut sent = [0; LANES as usize];
        for (round, item) in round.iter_mut().zip(&run.items) {
            let sent = &mut sent[usize::from(item.lane)];
            *round = *sent / 2;
            *sent += 1;
        }
        steps.sort_by_key(|(step, fate)| (round[step.item], fate.place));
        for (number, (step, fate)) in steps.iter().enumerate() {
            let before = steps[number.saturating_sub(1)].0;
            if round[before.item] != round[step.item] {
                run.pass(LONG);
                run.model.close();
            }
            run.arrive(*step);
            if fate.again {
                run.arrive_again(before);
            }
        }
        run.end();
    }

    /// Whatever the order and the times: nothing false comes out, and every byte of TCP that arrived.
    #[test]
    fn anything_goes(traffic in traffic(), fates in fates(), lost in prop_oneof![Just(0), Just(20)]) {
        let mut run = Run::new(&traffic);
        run.model.demand_nothing();
        let mut steps = fated(run.steps(), &fates, lost);
        steps.sort_by_key(|(_, fate)| fate.place);
        for (step, fate) in steps {
            run.arrive(step);
            if fate.again {
                run.arrive_again(step);
            }
            if fate.wait > 1000 {
                run.pass(Duration::from_micros(fate.wait.into()));
            }
        }
        run.end();
    }

    /// All of it, in order: it leaves the receiver's kernel as it left the sender's, packet for packet, and waits for
    /// nothing.
    #[test]
    fn complete_and_in_order(mut traffic in traffic()) {
        // What is pushed in the middle is pushed a little later when it is joined.
        let (mut streams, mut items) = (traffic.streams.clone(), Vec::new());
        let lanes: Vec<u8> = traffic.items.iter().map(|item| item.lane).collect();
        for stream in &mut streams {
            let last = stream.parts.len() - 1;
            for (_, flags) in &mut stream.parts[..last] {
                *flags &= !PSH;
            }
        }
        for (item, lane) in traffic.items.iter().zip(lanes) {
            items.push(match item.stream {
                Some((stream, start)) => {
                    let all = streams[stream].items(stream, lane);
                    all.into_iter().find(|item| item.stream == Some((stream, start))).unwrap()
                }
                None => item.clone(),
            });
        }
        (traffic.streams, traffic.items) = (streams, items);
        let mut run = Run::new(&traffic);
        for step in run.steps() {
            let bytes = &run.sent[step.item][step.slice].bytes;
            assert_eq!(run.hosts.receive(bytes, false), Ok(()));
        }
        run.hosts.flush();
        assert!(!run.hosts.is_waiting());
        let written = run.hosts.take();
        let came: Vec<_> = written.iter().flat_map(|bytes| Packet::read(bytes).cut()).collect();
        let sent: Vec<_> = run.items.iter().flat_map(|item| &item.packets).flat_map(Packet::cut).collect();
        assert_eq!(came.len(), sent.len());
        for (came, sent) in came.iter().zip(&sent) {
            assert_eq!(came, sent);
        }
    }
}

/// The newer one of two packets is whole although the older one's slices came in between: what there is of the older one
/// goes first, without waiting for its time.
#[test]
fn an_older_packet_does_not_go_after_a_newer_one_that_is_whole() {
    let streams = |flow| {
        let items = small_items(flow, 3).into_iter();
        items.filter(|traffic| !traffic.streams.is_empty())
    };
    let mut seen = 0;
    for (older, newer) in streams(0).zip(streams(1)) {
        let mut run = Run::new(&older.beside(&newer, 0));
        let mut ports = Vec::new();
        for (item, slice) in [(1, 0), (0, 0), (1, 1), (0, 2), (1, 2)] {
            let bytes = &run.sent[item][slice].bytes;
            assert_eq!(run.hosts.receive(bytes, false), Ok(()));
            run.hosts.flush();
            run.model.arrive(item, slice, false);
            for written in run.hosts.take() {
                run.model.deliver(&written);
                let packet = Packet::read(&written).bytes;
                let at = kernel::place(&packet).transport;
                ports.push(kernel::u16_at(&packet, at) as u16);
            }
        }
        assert_eq!(ports, [port(0), port(0), port(1)]);
        assert!(!run.hosts.is_waiting());
        run.end();
        seen += 1;
    }
    assert!(seen > 5);
}

/// A packet whose slices come one by one, each just in time, waits no longer than any other, whether it lies where it was
/// opened or was set aside on the way.
#[test]
fn slices_that_trickle_do_not_keep_a_packet_for_ever() {
    const STEP: Duration = Duration::from_micros(450);
    let head = |number| Head {
        v6: false,
        extras: vec![],
        ecn: 0,
        id: 1,
        may_fragment: false,
        port: port(number),
        tcp: Some(Tcp {
            sequence: 1,
            flags: ACK,
            options: 3,
        }),
    };
    let stream = |number| Stream {
        head: head(number),
        segment: 1000,
        parts: vec![(59_000, ACK)],
    };
    let (slow, other) = (stream(0), stream(1));
    for disturbed_at in [None, Some(20)] {
        let items = [slow.items(0, 0), other.items(1, 0)].concat();
        let mut run = Run::new(&Traffic {
            datagram: 1152,
            streams: vec![slow.clone(), other.clone()],
            items,
        });
        assert!(run.sent[0].len() > 50);
        let mut waited = Duration::ZERO;
        for slice in 0..50 {
            let bytes = &run.sent[0][slice].bytes;
            assert_eq!(run.hosts.receive(bytes, false), Ok(()));
            if disturbed_at == Some(slice) {
                let bytes = &run.sent[1][0].bytes;
                assert_eq!(run.hosts.receive(bytes, false), Ok(()));
            }
            run.hosts.pass(STEP);
            waited += STEP;
            let first = |written: &Vec<u8>| Packet::read(written).bytes.len() > 10_000;
            if run.hosts.take().iter().any(first) {
                break;
            }
        }
        let limit = Duration::from_millis(20);
        assert!(waited >= limit && waited < limit + 2 * STEP, "{waited:?}");
    }
}

/// What waits together of a stream is written as one packet, of more bytes than its length field can say.
#[test]
fn super_packets_of_a_stream_are_joined() {
    let head = Head {
        v6: false,
        extras: vec![1, 1],
        ecn: 2,
        id: 65_500,
        may_fragment: false,
        port: port(0),
        tcp: Some(Tcp {
            sequence: u32::MAX - 100_000,
            flags: ACK,
            options: 3,
        }),
    };
    let full = 41 * 1448;
    let parts = vec![
        (full, ACK),
        (full, ACK),
        (full, ACK),
        (full, ACK),
        (1999, ACK | PSH),
    ];
    let stream = Stream {
        head,
        segment: 1448,
        parts,
    };
    let items = stream.items(0, 0);
    let mut run = Run::new(&Traffic {
        datagram: 1472,
        streams: vec![stream],
        items,
    });
    for step in run.steps() {
        let bytes = &run.sent[step.item][step.slice].bytes;
        assert_eq!(run.hosts.receive(bytes, false), Ok(()));
        run.model.arrive(step.item, step.slice, false);
    }
    run.hosts.flush();
    let written = run.hosts.take();
    let lengths: Vec<usize> = written.iter().map(Vec::len).collect();
    assert_eq!(lengths.len(), 1, "{lengths:?}");
    run.model.deliver(&written[0]);
    run.end().check_order();
}
