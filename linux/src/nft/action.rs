//! What a rule does when its tests hold: count, mark, translate, decide.

use std::net::IpAddr;

use super::field::Field;
use super::rule::{Reject, Rule, register};
use super::set::Set;
use super::value::{Type, Value, Verdict};
use super::wire::Attrs;

impl Rule {
    /// Counts packets and bytes; [`Socket::rules`](super::Socket::rules) reads them.
    #[must_use]
    pub fn counter(mut self) -> Self {
        self.expr("counter", &Attrs::default());
        self
    }

    /// Lets `rate` packets a second through, and `burst` at once; the rule ends for the rest.
    #[must_use]
    pub fn limit(mut self, rate: u64, burst: u32) -> Self {
        let mut attrs = Attrs::default();
        attrs
            .u64(1, rate)
            .u64(2, 1)
            .u32(3, burst)
            .u32(4, 0)
            .u32(5, 0);
        self.expr("limit", &attrs);
        self
    }

    /// The packet goes on; later chains of other priorities still see it.
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(&Verdict::Accept)
    }

    /// The packet ends here.
    #[must_use]
    pub fn drop(self) -> Self {
        self.verdict(&Verdict::Drop)
    }

    /// Back to the calling chain.
    #[must_use]
    pub fn ret(self) -> Self {
        self.verdict(&Verdict::Return)
    }

    /// On with another chain, and back afterwards.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(&Verdict::jump(chain))
    }

    /// On with another chain.
    #[must_use]
    pub fn goto(self, chain: &str) -> Self {
        self.verdict(&Verdict::goto(chain))
    }

    /// Decides.
    #[must_use]
    pub fn verdict(mut self, verdict: &Verdict) -> Self {
        let mut attrs = Attrs::default();
        attrs.u32(1, 0).nest(2, |data| verdict.encode(data));
        self.expr("immediate", &attrs);
        self
    }

    /// Drops the packet and tells its sender. In input, forward and output.
    #[must_use]
    pub fn reject(mut self, with: Reject) -> Self {
        let (kind, code) = match with {
            Reject::TcpReset => (1, 0),
            Reject::NoRoute => (2, 0),
            Reject::PortUnreachable => (2, 1),
            Reject::HostUnreachable => (2, 2),
            Reject::AdminProhibited => (2, 3),
        };
        let mut attrs = Attrs::default();
        attrs.u32(1, kind).bytes(2, &[code]);
        self.expr("reject", &attrs);
        self
    }

    /// Connection tracking passes the packet over. In prerouting and output, before it (at [`priority::RAW`]).
    ///
    /// [`priority::RAW`]: super::priority::RAW
    #[must_use]
    pub fn notrack(mut self) -> Self {
        self.expr("notrack", &Attrs::default());
        self
    }

    /// Sets the packet's mark ([`Field::Mark`]) or the connection's ([`Field::CtMark`]).
    #[must_use]
    pub fn set_mark(mut self, mark: Field, value: u32) -> Self {
        self.immediate(0, &Value::Number(value));
        self.store(mark);
        self
    }

    /// Sets bits of the packet's or the connection's mark and keeps the others.
    #[must_use]
    pub fn add_mark(mut self, mark: Field, bits: u32) -> Self {
        self.load(&[mark]);
        self.mask(&(!bits).to_ne_bytes(), &bits.to_ne_bytes());
        self.store(mark);
        self
    }

    /// Copies one mark to the other.
    #[must_use]
    pub fn copy_mark(mut self, from: Field, to: Field) -> Self {
        self.load(&[from]);
        self.store(to);
        self
    }

    /// Puts the fields into a set that rules fill ([`Set::learned`]), or makes them stay there for its whole time again.
    #[must_use]
    pub fn update(mut self, fields: &[Field], set: &Set) -> Self {
        self.load(fields);
        let mut attrs = Attrs::default();
        attrs
            .text(1, set.name())
            .u32(3, NFT_DYNSET_OP_UPDATE)
            .u32(4, register(0));
        self.expr("dynset", &attrs);
        self
    }

    /// Gives the connection the address of the interface it leaves by. In NAT chains of postrouting.
    #[must_use]
    pub fn masquerade(mut self) -> Self {
        self.expr("masq", &Attrs::default());
        self
    }

    /// Gives the connection another source. In NAT chains of postrouting and input.
    #[must_use]
    pub fn snat(mut self, address: IpAddr) -> Self {
        self.immediate(0, &address.into());
        self.nat(NFT_NAT_SNAT, family(address), 0, None);
        self
    }

    /// Gives the connection another destination, with a port for protocols that have ports. In NAT chains of prerouting
    /// and output. Test [`Field::L4Proto`] before giving a port.
    #[must_use]
    pub fn dnat(mut self, address: IpAddr, port: Option<u16>) -> Self {
        self.immediate(0, &address.into());
        let slot = if address.is_ipv4() { 1 } else { 4 };
        if let Some(port) = port {
            self.immediate(slot, &Value::Port(port));
        }
        self.nat(NFT_NAT_DNAT, family(address), 0, port.map(|_| slot));
        self
    }

    /// Gives the connection the destination, address or address and port, that a map holds for the fields.
    ///
    /// # Panics
    /// When the map does not give an address first.
    #[must_use]
    pub fn dnat_map(mut self, fields: &[Field], map: &Set) -> Self {
        let (family, slot, parts) = match map.first_value() {
            Some((Type::Ipv4, parts)) => (NFPROTO_IPV4, 1, parts),
            Some((Type::Ipv6, parts)) => (NFPROTO_IPV6, 4, parts),
            _ => panic!("map {} does not give addresses", map.name()),
        };
        self.load(fields);
        self.find(map, Some(register(0)), false);
        self.nat(NFT_NAT_DNAT, family, 0, (parts > 1).then_some(slot));
        self
    }

    /// Sends the connection to a port of this host. In NAT chains of prerouting and output.
    #[must_use]
    pub fn redirect(mut self, port: u16) -> Self {
        self.immediate(0, &Value::Port(port));
        let mut attrs = Attrs::default();
        attrs
            .u32(1, register(0))
            .u32(3, NF_NAT_RANGE_PROTO_SPECIFIED);
        self.expr("redir", &attrs);
        self
    }

    /// Gives the packet to the transparent socket that has its connection, or else to one that listens at this address;
    /// the rule ends where there is neither. The packet keeps its destination, so it has to be routed to this host, for
    /// which it mostly needs a mark. In prerouting, for TCP and UDP; test [`Field::L4Proto`] first.
    #[must_use]
    pub fn tproxy(mut self, address: IpAddr, port: u16) -> Self {
        let slot = if address.is_ipv4() { 1 } else { 4 };
        self.immediate(0, &address.into());
        self.immediate(slot, &Value::Port(port));
        let mut attrs = Attrs::default();
        attrs
            .u32(1, family(address))
            .u32(2, register(0))
            .u32(3, register(slot));
        self.expr("tproxy", &attrs);
        self
    }

    /// Lowers the segment size a TCP SYN announces to what the routes of both directions carry. In forward, output and
    /// postrouting; test [`Field::TcpFlags`] first.
    #[must_use]
    pub fn clamp_mss(mut self) -> Self {
        let mut route = Attrs::default();
        route.u32(1, register(0)).u32(2, NFT_RT_TCPMSS);
        self.expr("rt", &route);
        let mut order = Attrs::default();
        order
            .u32(1, register(0))
            .u32(2, register(0))
            .u32(3, 1)
            .u32(4, 2)
            .u32(5, 2);
        self.expr("byteorder", &order);
        let mut option = Attrs::default();
        option
            .u32(7, register(0))
            .bytes(2, &[TCPOPT_MAXSEG])
            .u32(3, 2)
            .u32(4, 2)
            .u32(6, 1);
        self.expr("exthdr", &option);
        self
    }

    /// Puts a constant into a slot.
    fn immediate(&mut self, slot: usize, value: &Value) {
        let mut attrs = Attrs::default();
        attrs.u32(1, register(slot)).nest(2, |data| {
            data.bytes(1, &value.comparand());
        });
        self.expr("immediate", &attrs);
    }

    /// Writes the first slot to a mark.
    ///
    /// # Panics
    /// When the field is no mark.
    fn store(&mut self, mark: Field) {
        let mut attrs = Attrs::default();
        match mark {
            Field::Mark => {
                attrs.u32(2, 3).u32(3, register(0));
                self.expr("meta", &attrs);
            }
            Field::CtMark => {
                attrs.u32(2, 3).u32(4, register(0));
                self.expr("ct", &attrs);
            }
            other => panic!("{other:?} is no mark"),
        }
    }

    fn nat(&mut self, kind: u32, family: u32, address: usize, port: Option<usize>) {
        let mut attrs = Attrs::default();
        attrs.u32(1, kind).u32(2, family).u32(3, register(address));
        if let Some(port) = port {
            attrs.u32(5, register(port));
        }
        self.expr("nat", &attrs);
    }
}

fn family(address: IpAddr) -> u32 {
    if address.is_ipv4() {
        NFPROTO_IPV4
    } else {
        NFPROTO_IPV6
    }
}

const NFT_DYNSET_OP_UPDATE: u32 = 1;
const NFT_NAT_SNAT: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
const NFT_RT_TCPMSS: u32 = 3;
const TCPOPT_MAXSEG: u8 = 2;
