//! The control messages that members send each other inside their sessions.
//!
//! The first byte says which message it is; 1 to 31 are the mesh's, others belong to whoever sends them and are handed
//! on. A session is a datagram service: what must arrive is sent again until it is acknowledged. A message longer than
//! [`MAX_BODY`] travels in parts (see [`super::parts`]).

use std::net::SocketAddr;

use weave_model::{Block, NodeId};

use super::cluster::Certificate;
use super::codec::{Malformed, Reader, Writer};
use super::deed::{Deed, read_block, write_block};
use super::digest::{BUCKETS, Buckets, Sums};
use super::inquiry::Testimony;
use super::record::RecordVersion;
use super::removal::MAX_REMOVAL;
use super::secret::HandedOn;
use super::sheet::MAX_SHEET;
use crate::wire::{END, ENVELOPE};

/// The longest control message that is sent whole, in bytes: it fits the smallest path, packets of 1200 bytes, with all
/// headers around it (IPv6 40, UDP 8, ours 16, the kind 1, the tag 16), in an envelope too (66).
pub const MAX_BODY: usize = 1119 - ENVELOPE;

/// The most entries of a table of links: with the kind and the version of the message they fit one datagram.
pub const MAX_LINKS: usize = (MAX_BODY - 9) / LINK;
/// Bytes of an entry: the node, microseconds, thousandths.
const LINK: usize = END + 4 + 2;

/// The most acknowledgements in one message, which fits one datagram: of each the node and the version.
pub const MAX_ACKS: usize = (MAX_BODY - 1) / 48;

/// The highest first byte that is the mesh's.
pub const LAST_KIND: u8 = 31;

const PING: u8 = 1;
const PONG: u8 = 2;
const PART: u8 = 3;
const RECORD: u8 = 4;
const RECORD_ACKS: u8 = 5;
const SUMMARY: u8 = 6;
const DEED_REQUEST: u8 = 7;
const DEED_GRANT: u8 = 8;
const DEED_ACK: u8 = 9;
const DEED_REFUSAL: u8 = 10;
const LINKS: u8 = 11;
const LINKS_ACK: u8 = 12;
const OFFICE: u8 = 13;
const DEED_INQUIRY: u8 = 14;
const DEED_TESTIMONY: u8 = 15;
const DIGEST: u8 = 16;
const SHEET_DIGEST: u8 = 17;
const SHEET: u8 = 21;
const SHEET_ACKS: u8 = 22;
const SHEET_SUMMARY: u8 = 23;
const SECRET: u8 = 29;

/// The most entries of a summary: as many as the longest message in parts carries.
pub const MAX_SUMMARY: usize = 4096;
const MAX_CHAIN: usize = 40;

/// A member that another one reaches without a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Which, as an envelope names it.
    pub end: [u8; END],
    /// Round-trip time in microseconds.
    pub rtt_us: u32,
    /// Of a thousand datagrams and their answers, how many are lost.
    pub loss: u16,
}

/// One control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// "Are you there?" The answer goes back by the way that the question came.
    Ping {
        /// Comes back in the answer.
        id: u64,
        /// The sender has not heard the receiver for a while, so what the receiver sends may be lost.
        alarm: bool,
    },
    /// "Yes, and I see you at this address."
    Pong {
        /// As in the ping.
        id: u64,
        /// The source address of the ping's datagram; absent if it came through a relay.
        observed: Option<SocketAddr>,
    },
    /// A part of a longer message.
    Part {
        /// Which message it is of.
        transfer: u32,
        /// Which part, from 0.
        index: u8,
        /// How many parts there are.
        count: u8,
        /// The part.
        bytes: Vec<u8>,
    },
    /// A node record, or the removal that takes its place, as it was signed.
    Record(Vec<u8>),
    /// "These records I have, or newer ones": whose, and which; at most [`MAX_ACKS`].
    RecordAcks(Vec<(NodeId, RecordVersion)>),
    /// "This is the sum of the records that I have." Drawn by it: the same, or a summary of what differs.
    Digest {
        /// It answers a digest, so it wants no answer.
        answer: bool,
        /// The sum of each bucket.
        sums: Box<Sums>,
    },
    /// "These records I have, and in these buckets no others."
    Summary {
        /// It answers a summary, so it wants no answer.
        answer: bool,
        /// Which buckets.
        buckets: Buckets,
        /// Whose records, and which.
        records: Vec<(NodeId, RecordVersion)>,
    },
    /// "I need addresses."
    DeedRequest {
        /// Tells a repeated request from another.
        id: u64,
        /// The binary logarithm of how many; 0 for what a joiner gets.
        bits: u8,
        /// The area of a network that they must lie in; otherwise in none.
        within: Option<Block>,
    },
    /// "This block is yours": the deed and its chain, nearest first.
    DeedGrant(Vec<Deed>),
    /// "I have saved the deed of this block."
    DeedAck {
        /// The block.
        block: Block,
        /// The counter of the deed's version.
        counter: u64,
    },
    /// "I have none to give."
    DeedRefusal {
        /// As in the request.
        id: u64,
    },
    /// "These members I reach without a relay."
    Links {
        /// Grows with every change in a run of the sender.
        version: u64,
        /// Whom, at most [`MAX_LINKS`].
        links: Vec<Link>,
    },
    /// "I have that table."
    LinksAck {
        /// Its version.
        version: u64,
    },
    /// "You are an admin from now on." The receiver's next record shows that it has it.
    Office(Certificate),
    /// "This is the cluster's secret from now on." The receiver's next record shows that it has it.
    Secret(HandedOn),
    /// "What do you know of this node's deeds?"
    DeedInquiry {
        /// Comes back in the answer.
        id: u64,
        /// The node.
        about: NodeId,
    },
    /// "This."
    DeedTestimony(Testimony),
    /// A node's sheet, as it was signed.
    Sheet(Vec<u8>),
    /// The same of sheets.
    SheetAcks(Vec<(NodeId, RecordVersion)>),
    /// The same of sheets.
    SheetDigest {
        /// It answers a digest, so it wants no answer.
        answer: bool,
        /// The sum of each bucket.
        sums: Box<Sums>,
    },
    /// "These sheets I have, and in these buckets no others."
    SheetSummary {
        /// It answers a summary, so it wants no answer.
        answer: bool,
        /// Which buckets.
        buckets: Buckets,
        /// Whose sheets, and which.
        sheets: Vec<(NodeId, RecordVersion)>,
    },
}

impl Message {
    /// Whether it is an answer to which nothing comes back: that the receiver is silent then means nothing.
    pub const fn is_last_word(&self) -> bool {
        matches!(
            self,
            Self::RecordAcks(_)
                | Self::SheetAcks(_)
                | Self::LinksAck { .. }
                | Self::DeedAck { .. }
                | Self::DeedRefusal { .. }
                | Self::DeedTestimony(_)
                | Self::Digest { answer: true, .. }
                | Self::Summary { answer: true, .. }
                | Self::SheetDigest { answer: true, .. }
                | Self::SheetSummary { answer: true, .. }
        )
    }

    /// The bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            Self::Ping { id, alarm } => out.u8(PING).u64(*id).u8(u8::from(*alarm)),
            Self::Pong { id, observed } => {
                out.u8(PONG).u64(*id);
                observed.iter().for_each(|address| {
                    out.address(*address);
                });
                &mut out
            }
            Self::Part {
                transfer,
                index,
                count,
                bytes,
            } => out
                .u8(PART)
                .u32(*transfer)
                .u8(*index)
                .u8(*count)
                .bytes(bytes),
            Self::DeedRequest { id, bits, within } => request(&mut out, *id, *bits, *within),
            Self::DeedGrant(deeds) => {
                out.u8(DEED_GRANT);
                deeds.iter().for_each(|deed| deed.write(&mut out));
                &mut out
            }
            Self::DeedAck { block, counter } => {
                write_block(*block, out.u8(DEED_ACK));
                out.u64(*counter)
            }
            Self::DeedRefusal { id } => out.u8(DEED_REFUSAL).u64(*id),
            Self::Links { version, links } => {
                out.u8(LINKS).u64(*version);
                links.iter().for_each(|link| write_link(link, &mut out));
                &mut out
            }
            Self::LinksAck { version } => out.u8(LINKS_ACK).u64(*version),
            Self::Office(certificate) => {
                certificate.write(out.u8(OFFICE));
                &mut out
            }
            Self::Secret(handed_on) => {
                handed_on.write(out.u8(SECRET));
                &mut out
            }
            Self::DeedInquiry { id, about } => {
                out.u8(DEED_INQUIRY).u64(*id).bytes(about.as_bytes())
            }
            Self::DeedTestimony(testimony) => {
                testimony.write(out.u8(DEED_TESTIMONY));
                &mut out
            }
            flooded => flooded.encode_flooded(&mut out),
        };
        out.0
    }

    /// Writes a message of records or of sheets, which are flooded alike.
    fn encode_flooded<'a>(&self, out: &'a mut Writer) -> &'a mut Writer {
        match self {
            Self::Record(bytes) => out.u8(RECORD).bytes(bytes),
            Self::RecordAcks(acks) => entries(out.u8(RECORD_ACKS), acks),
            Self::Digest { answer, sums } => digest(out, DIGEST, *answer, sums),
            Self::SheetDigest { answer, sums } => digest(out, SHEET_DIGEST, *answer, sums),
            Self::Summary {
                answer,
                buckets,
                records,
            } => summary(out, SUMMARY, (*answer, *buckets), records),
            Self::Sheet(bytes) => out.u8(SHEET).bytes(bytes),
            Self::SheetAcks(acks) => entries(out.u8(SHEET_ACKS), acks),
            Self::SheetSummary {
                answer,
                buckets,
                sheets,
            } => summary(out, SHEET_SUMMARY, (*answer, *buckets), sheets),
            _ => out,
        }
    }

    /// Reads a message; `Ok(None)` for a kind that is not the mesh's.
    ///
    /// # Errors
    /// When it is of a known kind but does not have that kind's form.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut reader = Reader::new(bytes, "control message");
        let kind = reader.u8()?;
        let message = match kind {
            PING => Self::Ping {
                id: reader.u64()?,
                alarm: reader.u8()? != 0,
            },
            PONG => Self::Pong {
                id: reader.u64()?,
                observed: (!reader.is_empty()).then(|| reader.address()).transpose()?,
            },
            PART => {
                let (transfer, index, count) = (reader.u32()?, reader.u8()?, reader.u8()?);
                let bytes = reader.bytes(reader.rest().len())?.to_vec();
                Self::Part {
                    transfer,
                    index,
                    count,
                    bytes,
                }
            }
            LINKS => Self::Links {
                version: reader.u64()?,
                links: read_all(&mut reader, MAX_LINKS, read_link)?,
            },
            LINKS_ACK => Self::LinksAck {
                version: reader.u64()?,
            },
            RECORD | RECORD_ACKS | SUMMARY | DIGEST | SHEET | SHEET_ACKS | SHEET_SUMMARY
            | SHEET_DIGEST => Self::decode_flooded(kind, &mut reader)?,
            SECRET => Self::Secret(HandedOn::read(&mut reader)?),
            DEED_REQUEST..=DEED_REFUSAL | OFFICE..=DEED_TESTIMONY => {
                Self::decode_deed(kind, &mut reader)?
            }
            _ => return Ok(None),
        };
        reader.end()?;
        Ok(Some(message))
    }

    /// The messages about records and sheets, which are flooded alike.
    fn decode_flooded(kind: u8, reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let len = reader.rest().len();
        Ok(match kind {
            RECORD if len <= MAX_REMOVAL => Self::Record(reader.bytes(len)?.to_vec()),
            SHEET if len <= MAX_SHEET => Self::Sheet(reader.bytes(len)?.to_vec()),
            RECORD_ACKS => Self::RecordAcks(read_all(reader, MAX_ACKS, read_entry)?),
            SHEET_ACKS => Self::SheetAcks(read_all(reader, MAX_ACKS, read_entry)?),
            DIGEST => Self::Digest {
                answer: reader.u8()? != 0,
                sums: read_sums(reader)?,
            },
            SHEET_DIGEST => Self::SheetDigest {
                answer: reader.u8()? != 0,
                sums: read_sums(reader)?,
            },
            SUMMARY => Self::Summary {
                answer: reader.u8()? != 0,
                buckets: Buckets(reader.u64()?),
                records: read_all(reader, MAX_SUMMARY, read_entry)?,
            },
            SHEET_SUMMARY => Self::SheetSummary {
                answer: reader.u8()? != 0,
                buckets: Buckets(reader.u64()?),
                sheets: read_all(reader, MAX_SUMMARY, read_entry)?,
            },
            _ => return Err(reader.malformed()),
        })
    }

    /// The messages about deeds and offices.
    fn decode_deed(kind: u8, reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match kind {
            DEED_REQUEST => Self::DeedRequest {
                id: reader.u64()?,
                bits: reader.u8()?.min(32),
                within: match reader.is_empty() {
                    true => None,
                    false => Some(read_block(reader)?),
                },
            },
            DEED_GRANT => Self::DeedGrant(read_all(reader, MAX_CHAIN, Deed::read)?),
            DEED_ACK => Self::DeedAck {
                block: read_block(reader)?,
                counter: reader.u64()?,
            },
            DEED_REFUSAL => Self::DeedRefusal { id: reader.u64()? },
            OFFICE => Self::Office(Certificate::read(reader)?),
            DEED_INQUIRY => Self::DeedInquiry {
                id: reader.u64()?,
                about: NodeId::from_bytes(reader.array()?),
            },
            DEED_TESTIMONY => Self::DeedTestimony(Testimony::read(reader)?),
            _ => return Err(reader.malformed()),
        })
    }
}

fn write_link(link: &Link, out: &mut Writer) {
    out.bytes(&link.end).u32(link.rtt_us).u16(link.loss);
}

fn request(out: &mut Writer, id: u64, bits: u8, within: Option<Block>) -> &mut Writer {
    out.u8(DEED_REQUEST).u64(id).u8(bits);
    if let Some(area) = within {
        write_block(area, out);
    }
    out
}

fn entry(out: &mut Writer, node: NodeId, version: RecordVersion) -> &mut Writer {
    out.bytes(node.as_bytes())
        .u64(version.boot)
        .u64(version.counter)
}

fn entries<'a>(out: &'a mut Writer, all: &[(NodeId, RecordVersion)]) -> &'a mut Writer {
    all.iter().for_each(|(node, version)| {
        entry(out, *node, *version);
    });
    out
}

fn digest<'a>(out: &'a mut Writer, kind: u8, answer: bool, sums: &Sums) -> &'a mut Writer {
    out.u8(kind).u8(u8::from(answer));
    sums.iter().for_each(|sum| {
        out.u64(*sum);
    });
    out
}

fn read_sums(reader: &mut Reader<'_>) -> Result<Box<Sums>, Malformed> {
    let mut sums = Box::new([0; BUCKETS]);
    for sum in &mut *sums {
        *sum = reader.u64()?;
    }
    Ok(sums)
}

fn summary<'a>(
    out: &'a mut Writer,
    kind: u8,
    (answer, buckets): (bool, Buckets),
    entries: &[(NodeId, RecordVersion)],
) -> &'a mut Writer {
    out.u8(kind).u8(u8::from(answer)).u64(buckets.0);
    entries
        .iter()
        .take(MAX_SUMMARY)
        .for_each(|(node, version)| {
            entry(out, *node, *version);
        });
    out
}

fn read_entry(reader: &mut Reader<'_>) -> Result<(NodeId, RecordVersion), Malformed> {
    let node = NodeId::from_bytes(reader.array()?);
    Ok((
        node,
        RecordVersion {
            boot: reader.u64()?,
            counter: reader.u64()?,
        },
    ))
}

fn read_link(reader: &mut Reader<'_>) -> Result<Link, Malformed> {
    let link = Link {
        end: reader.array()?,
        rtt_us: reader.u32()?,
        loss: reader.u16()?,
    };
    if link.loss > 1000 {
        return Err(reader.malformed());
    }
    Ok(link)
}

fn read_all<'a, T>(
    reader: &mut Reader<'a>,
    most: usize,
    read: impl Fn(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let mut items = Vec::new();
    while !reader.is_empty() {
        if items.len() == most {
            return Err(reader.malformed());
        }
        items.push(read(reader)?);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::authority::Authority;
    use super::super::cluster::ClusterKey;
    use super::*;

    fn any_message() -> impl Strategy<Value = Message> {
        let node = any::<[u8; 32]>().prop_map(NodeId::from_bytes);
        let version =
            any::<(u64, u64)>().prop_map(|(boot, counter)| RecordVersion { boot, counter });
        let link = (any::<[u8; END]>(), any::<u32>(), 0..=1000_u16)
            .prop_map(|(end, rtt_us, loss)| Link { end, rtt_us, loss });
        prop_oneof![
            any::<(u64, bool)>().prop_map(|(id, alarm)| Message::Ping { id, alarm }),
            any::<(u64, Option<([u8; 4], u16)>)>().prop_map(|(id, observed)| Message::Pong {
                id,
                observed: observed.map(SocketAddr::from)
            }),
            (any::<u64>(), proptest::collection::vec(link, 0..5))
                .prop_map(|(version, links)| Message::Links { version, links }),
            any::<u64>().prop_map(|version| Message::LinksAck { version }),
            any::<(u32, u8, u8, Vec<u8>)>().prop_map(|(transfer, index, count, bytes)| {
                Message::Part {
                    transfer,
                    index,
                    count,
                    bytes,
                }
            }),
            any::<Vec<u8>>().prop_map(Message::Record),
            (node.clone(), version.clone()).prop_map(|ack| Message::RecordAcks(vec![ack])),
            (
                any::<(bool, u64)>(),
                proptest::collection::vec((node.clone(), version.clone()), 0..5)
            )
                .prop_map(|((answer, buckets), records)| Message::Summary {
                    answer,
                    buckets: Buckets(buckets),
                    records
                }),
            any::<(bool, [u64; 32])>().prop_map(|(answer, sums)| Message::Digest {
                answer,
                sums: Box::new(std::array::from_fn(|at| sums[at % 32]))
            }),
            any::<bool>().prop_map(|answer| Message::SheetDigest {
                answer,
                sums: Box::new([7; BUCKETS])
            }),
            any::<Vec<u8>>().prop_map(Message::Sheet),
            (node.clone(), version.clone()).prop_map(|ack| Message::SheetAcks(vec![ack; MAX_ACKS])),
            (
                any::<(bool, u64)>(),
                proptest::collection::vec((node, version), 0..5)
            )
                .prop_map(|((answer, buckets), sheets)| Message::SheetSummary {
                    answer,
                    buckets: Buckets(buckets),
                    sheets
                }),
            any_deed_message(),
        ]
    }

    fn any_deed_message() -> impl Strategy<Value = Message> {
        let block = (any::<u16>(), 0..20u8)
            .prop_map(|(first, bits)| Block::new(u32::from(first) >> bits << bits, bits).unwrap());
        let deed = Deed::genesis(
            Block::new(0, 12).unwrap(),
            NodeId::from_bytes([1; 32]),
            &ClusterKey::from_bytes(&[2; 32]),
        );
        prop_oneof![
            (any::<u64>(), 0..=32u8, proptest::option::of(0..=20u8)).prop_map(
                |(id, bits, area)| {
                    let within = area.and_then(|bits| Block::new(0, bits));
                    Message::DeedRequest { id, bits, within }
                }
            ),
            (0..4usize).prop_map(move |n| Message::DeedGrant(vec![deed; n])),
            (block, any::<u64>()).prop_map(|(block, counter)| Message::DeedAck { block, counter }),
            any::<u64>().prop_map(|id| Message::DeedRefusal { id }),
            (any::<u64>(), any::<[u8; 32]>()).prop_map(|(id, about)| Message::DeedInquiry {
                id,
                about: NodeId::from_bytes(about)
            }),
            (any::<u64>(), any::<Option<[u8; 31]>>(), 0..3usize).prop_map(move |(id, heir, n)| {
                let node = NodeId::from_bytes([7; 32]);
                Message::DeedTestimony(Testimony {
                    id,
                    about: node,
                    heir: heir.map(|_| node),
                    sum: id,
                    part: n as u8,
                    parts: n as u8 + 1,
                    members: vec![node; n],
                    deeds: vec![deed; n],
                })
            }),
            any::<([u8; 32], u64)>().prop_map(|(node, issued)| {
                let key = ClusterKey::from_bytes(&[2; 32]);
                let node = NodeId::from_bytes(node);
                Message::Office(Authority::Key(&key).certify(node, true, issued))
            }),
        ]
    }

    proptest! {
        #[test]
        fn any_message_round_trips(message in any_message()) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(Some(message)));
        }

        #[test]
        fn junk_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some(message)) = Message::decode(&bytes) {
                prop_assert_eq!(Message::decode(&message.encode()), Ok(Some(message)));
            }
        }
    }

    #[test]
    fn other_kinds_are_not_ours() {
        assert_eq!(Message::decode(&[LAST_KIND + 1, 1, 2, 3]), Ok(None));
        assert!(Message::decode(&[]).is_err());
        assert!(Message::decode(&[PING, 1]).is_err());
    }
}
