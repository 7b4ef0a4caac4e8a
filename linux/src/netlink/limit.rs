//! How fast a device may carry: what it sends waits in a token bucket, and what it receives goes by way of a device
//! that has one.
//!
//! Linux limits only what leaves a device. A [`Bucket`] is the queueing discipline `tbf` at a device's root
//! (`net/sched/sch_tbf.c`). What a device receives is redirected, before anything else of the stack sees it, to one of
//! the kind `ifb`, which "sends" it through its bucket and gives it back as received by the first device: a qdisc
//! `clsact`, in it a filter `u32` that matches everything, with the action `mirred`. While the `ifb` device is
//! missing, what was to go there is dropped. Only packet sockets of all ethertypes see what is received before that:
//! broadcast and multicast, which one takes ([`crate::packet`]), are carried whatever the bucket says.

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, Nla,
    NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcHeader, TcMessage,
    TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::{Error, IfName, Netlink};

/// The queueing discipline of a [`Bucket`].
const TBF: &str = "tbf";

/// `TCA_TBF_PARMS`: `struct tc_tbf_qopt`, 36 bytes: two `tc_ratespec` of 12, then limit, buffer and MTU.
const PARMS: u16 = 1;
/// `TCA_TBF_RATE64`: the rate where 32 bits do not hold it.
const RATE64: u16 = 4;
/// `TCA_TBF_BURST`: the bucket's size in bytes, exactly.
const BURST: u16 = 6;

/// Where the rate stands in [`PARMS`], which `tc_ratespec` begins with four other fields.
const RATE_AT: usize = 8;
/// Where the limit stands in [`PARMS`].
const LIMIT_AT: usize = 24;
/// The length of [`PARMS`].
const PARMS_LEN: usize = 36;

/// `TC_LINKLAYER_ETHERNET`: packets count as long as they are, with no table of rates beside.
const ETHERNET: u8 = 1;

/// The priority of our filter: after all that others may have there, because what it takes no later one sees.
const LAST: u32 = 0xffff;

/// A token bucket, the queueing discipline `tbf`. Packets count with their Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may leave at once. Super-packets that are larger are cut; other packets that are larger are dropped.
    pub burst: u32,
    /// Bytes that may wait; what comes on top is dropped.
    pub limit: u32,
}

impl Bucket {
    /// Whether a bucket that was read is this one, as far as the kernel tells.
    pub fn agrees(&self, wanted: &Self) -> bool {
        (self.rate, self.limit) == (wanted.rate, wanted.limit)
    }
}

impl Netlink {
    /// The rate and the limit of a device's bucket, with a burst of 0, which the kernel does not tell exactly. `None`
    /// if it has none.
    pub async fn bucket(&self, link: u32) -> Result<Option<Bucket>, Error> {
        let question = RouteNetlinkMessage::GetQueueDiscipline(message(link, TcHandle::ROOT));
        let doing = format!("look up the queue of device {link}");
        // What was asked for goes to whoever listens to changes, and to the asker only as an echo.
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO;
        match self.ask(&doing, question, flags).await {
            Ok((answers, _)) => Ok(answers.iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewQueueDiscipline(found) => read_bucket(found),
                _ => None,
            })),
            // A device that was never up has no queue that the kernel would show.
            Err(Error::Invalid(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives a device a bucket, in place of the one it has, or of whatever else stands at its root.
    pub async fn set_bucket(&self, link: u32, bucket: &Bucket) -> Result<(), Error> {
        let mut wanted = message(link, TcHandle::ROOT);
        wanted.attributes = vec![
            TcAttribute::Kind(TBF.to_owned()),
            TcAttribute::Options(bucket_options(bucket)),
        ];
        self.change(
            &format!("limit device {link} to {} bytes a second", bucket.rate),
            RouteNetlinkMessage::NewQueueDiscipline(wanted),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
    }

    /// Makes a device that packets can be redirected to. It is down.
    pub async fn add_ifb(&self, name: &IfName) -> Result<(), Error> {
        let mut wanted = LinkMessage::default();
        wanted.attributes = vec![
            LinkAttribute::IfName(name.as_str().to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
        ];
        self.change(
            &format!("make the device {name} of the kind ifb"),
            RouteNetlinkMessage::NewLink(wanted),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
    }

    /// Where all that a device receives is redirected to, if it is; 0 if that device is gone.
    pub async fn redirected(&self, from: u32) -> Result<Option<u32>, Error> {
        let mut question = message(from, received());
        question.header.info = filter_info();
        let doing = format!("list the filters of device {from}");
        let answers = self.dump(&doing, RouteNetlinkMessage::GetTrafficFilter(question));
        let answers = answers.await?;
        Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(filter) => target(filter),
            _ => None,
        }))
    }

    /// Redirects all that a device receives to another one, instead of where it went before.
    pub async fn redirect(&self, from: u32, to: u32) -> Result<(), Error> {
        let mut place = message(from, TcHandle::CLSACT);
        place.header.handle = TcHandle {
            major: TcHandle::CLSACT.major,
            minor: 0,
        };
        place.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
        let doing = format!("redirect what device {from} receives to device {to}");
        let made = self
            .change(
                &doing,
                RouteNetlinkMessage::NewQueueDiscipline(place),
                NLM_F_CREATE | NLM_F_EXCL,
            )
            .await;
        match made {
            Err(error) if !error.is_exists() => return Err(error),
            _ => {}
        }
        let mut filter = message(from, received());
        filter.header.info = filter_info();
        let former = RouteNetlinkMessage::DelTrafficFilter(filter.clone());
        match self.change(&doing, former, 0).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        filter.attributes = vec![
            TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
            TcAttribute::Options(everything_to(to)),
        ];
        self.change(
            &doing,
            RouteNetlinkMessage::NewTrafficFilter(filter),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
    }
}

fn message(link: u32, parent: TcHandle) -> TcMessage {
    let header = TcHeader {
        index: link.cast_signed(),
        parent,
        ..TcHeader::default()
    };
    TcMessage::from_parts(header, Vec::new())
}

/// Where filters of what a device receives stand, in `clsact` as in `ingress`.
const fn received() -> TcHandle {
    TcHandle {
        major: TcHandle::CLSACT.major,
        minor: TcHandle::MIN_INGRESS,
    }
}

/// The priority, and below it the protocol: any, in network order.
fn filter_info() -> u32 {
    let any = u16::try_from(libc::ETH_P_ALL).expect("a protocol has 16 bits");
    LAST << 16 | u32::from(any.to_be())
}

fn bucket_options(bucket: &Bucket) -> Vec<TcOption> {
    let mut parms = [0; PARMS_LEN];
    parms[1] = ETHERNET;
    let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
    parms[RATE_AT..][..4].copy_from_slice(&rate.to_ne_bytes());
    parms[LIMIT_AT..][..4].copy_from_slice(&bucket.limit.to_ne_bytes());
    let burst = bucket.burst.to_ne_bytes().to_vec();
    let mut options = vec![(PARMS, parms.to_vec()), (BURST, burst)];
    if bucket.rate > u64::from(u32::MAX) {
        options.push((RATE64, bucket.rate.to_ne_bytes().to_vec()));
    }
    let option = |(kind, bytes)| TcOption::Other(DefaultNla::new(kind, bytes));
    options.into_iter().map(option).collect()
}

/// The bucket that a queueing discipline is, if it is one.
fn read_bucket(found: &TcMessage) -> Option<Bucket> {
    let kind = |one: &TcAttribute| matches!(one, TcAttribute::Kind(kind) if kind == TBF);
    if !found.attributes.iter().any(kind) {
        return None;
    }
    // The crate does not know this kind, so its options are one attribute that was not taken apart.
    let options = found.attributes.iter().find_map(|one| match one {
        TcAttribute::Options(options) => options.first(),
        _ => None,
    })?;
    let mut bytes = vec![0; options.value_len()];
    options.emit_value(&mut bytes);
    let (mut rate, mut limit, mut rate64) = (0, 0, None);
    for option in NlasIterator::new(&bytes[..]).flatten() {
        let value = option.value();
        match option.kind() {
            PARMS => {
                rate = number(value.get(RATE_AT..)?)?;
                limit = number(value.get(LIMIT_AT..)?)?;
            }
            RATE64 => rate64 = value.first_chunk().copied().map(u64::from_ne_bytes),
            _ => {}
        }
    }
    Some(Bucket {
        rate: rate64.unwrap_or_else(|| rate.into()),
        burst: 0,
        limit,
    })
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_ne_bytes)
}

/// A filter that takes everything and sends it on by another device.
fn everything_to(link: u32) -> Vec<TcOption> {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    // No bit is looked at.
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = link;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ]
}

/// Where our filter sends everything; nothing if it is another one, or one that is without its action.
fn target(filter: &TcMessage) -> Option<u32> {
    if filter.header.info != filter_info() {
        return None;
    }
    let options = filter.attributes.iter().find_map(|one| match one {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let actions = options.iter().find_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    })?;
    let parts = actions.iter().flat_map(|action| &action.attributes);
    parts
        .filter_map(|part| match part {
            TcActionAttribute::Options(options) => Some(options),
            _ => None,
        })
        .flatten()
        .find_map(|option| match option {
            TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror.ifindex),
            _ => None,
        })
}
