//! Netlink framing: messages, attributes that nest, and the reverse for what the kernel answers.
//!
//! A message is `struct nlmsghdr` (16 bytes, native byte order), `struct nfgenmsg` (4 bytes) and attributes; an attribute
//! is length and type (u16, native), the payload, and padding to 4 bytes. Numbers inside nftables attributes are
//! big-endian. Source: `linux/netlink.h`, `linux/netfilter/nfnetlink.h`.

/// `NFNL_SUBSYS_NFTABLES`.
pub(crate) const SUBSYSTEM: u8 = 10;
/// Bytes before the first attribute: `nlmsghdr` and `nfgenmsg`.
pub(crate) const HEADERS: usize = 20;
/// `NFTA_LIST_ELEM`: the type of a member of a list.
pub(crate) const LIST_ELEM: u16 = 1;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Appends attributes to a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attrs(Vec<u8>);

impl Attrs {
    /// Raw payload.
    ///
    /// # Panics
    /// When the payload does not fit the 16-bit length; callers bound what they write.
    pub(crate) fn bytes(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let length = u16::try_from(payload.len() + 4)
            .expect("attribute payloads are bounded by their callers");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.pad();
        self
    }

    /// A big-endian number.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A big-endian number.
    pub(crate) fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string with its terminating zero.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Attributes inside an attribute.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        fill(self);
        let length = u16::try_from(self.0.len() - start)
            .expect("nested attributes are bounded by their callers");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        self
    }

    /// Attributes already encoded.
    pub(crate) fn append(&mut self, other: &Self) -> &mut Self {
        self.0.extend_from_slice(&other.0);
        self
    }

    /// What was written.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Appends a whole message: headers and attributes.
///
/// `kind` is `NFT_MSG_*` with the subsystem in the upper byte, or a batch marker; `resource` is `nfgenmsg.res_id`.
pub(crate) fn message(
    to: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    attrs: &Attrs,
) {
    let length =
        u32::try_from(HEADERS + attrs.0.len()).expect("a message holds few bounded attributes");
    to.extend_from_slice(&length.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(&flags.to_ne_bytes());
    to.extend_from_slice(&sequence.to_ne_bytes());
    to.extend_from_slice(&0u32.to_ne_bytes());
    to.extend_from_slice(&[family, 0]);
    to.extend_from_slice(&resource.to_be_bytes());
    to.extend_from_slice(&attrs.0);
}

/// A message read from the kernel (or from a batch of ours).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// `nlmsg_type`.
    pub(crate) kind: u16,
    /// `nlmsg_flags`.
    pub(crate) flags: u16,
    /// `nlmsg_seq`.
    pub(crate) sequence: u32,
    /// `nlmsg_pid`: the number of the socket that the message is from, or that caused it.
    pub(crate) port: u32,
    /// All after `nlmsghdr`.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after `nfgenmsg`.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(4..).unwrap_or_default())
    }

    /// `nfgenmsg.nfgen_family`.
    pub(crate) fn family(&self) -> u8 {
        self.payload.first().copied().unwrap_or_default()
    }
}

/// The messages of one datagram; ends at the first malformed one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.get(..16)?;
        let length = u32_ne(header)? as usize;
        let payload = self.0.get(16..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16_ne(&header[4..])?,
            flags: u16_ne(&header[6..])?,
            sequence: u32_ne(&header[8..])?,
            port: u32_ne(&header[12..])?,
            payload,
        })
    }
}

/// Attributes in order, as type without flags and payload; ends at the first malformed one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of a type.
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter()
            .find_map(|(found, payload)| (found == kind).then_some(payload))
    }

    /// The first attribute of a type as a big-endian number.
    pub(crate) fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(
            self.find(kind)?.get(..4)?.try_into().ok()?,
        ))
    }

    /// The first attribute of a type as a big-endian number.
    pub(crate) fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(
            self.find(kind)?.get(..8)?.try_into().ok()?,
        ))
    }

    /// The first attribute of a type as text, up to its zero.
    pub(crate) fn text(self, kind: u16) -> Option<String> {
        self.find(kind).map(text)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16_ne(self.0)?);
        let kind = u16_ne(self.0.get(2..)?)? & NLA_TYPE_MASK;
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// Text up to its first zero.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The user data of tables, chains, rules, sets and elements: type, length (one byte each), value.
#[derive(Clone, Debug, Default)]
pub(crate) struct UserData(Vec<u8>);

impl UserData {
    /// Adds one value; at most 255 bytes of it.
    pub(crate) fn put(&mut self, kind: u8, value: &[u8]) {
        let value = &value[..value.len().min(255)];
        self.0.extend_from_slice(&[kind, value.len() as u8]);
        self.0.extend_from_slice(value);
    }

    /// Adds a text with its zero, cut to what one value may hold.
    pub(crate) fn put_text(&mut self, kind: u8, value: &str) {
        let end = (0..=value.len().min(COMMENT_MAX))
            .rev()
            .find(|at| value.is_char_boundary(*at))
            .unwrap_or(0);
        let mut bytes = value.as_bytes()[..end].to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
    }

    /// The encoded values; empty when there are none.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Finds a value in encoded user data.
    pub(crate) fn find(mut bytes: &[u8], kind: u8) -> Option<&[u8]> {
        while let [found, length, rest @ ..] = bytes {
            let (value, after) = rest.split_at_checked(usize::from(*length))?;
            if *found == kind {
                return Some(value);
            }
            bytes = after;
        }
        None
    }
}

/// What `nft` takes as a comment: `NFTNL_UDATA_COMMENT_MAXLEN`.
const COMMENT_MAX: usize = 128;

fn u16_ne(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?))
}

fn u32_ne(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let mut attrs = Attrs::default();
        attrs.text(1, "ab").nest(2, |inner| {
            inner.u32(3, 7);
        });
        assert_eq!(attrs.as_bytes().len(), 8 + 12);
        let mut bytes = Vec::new();
        message(&mut bytes, 0xa00, 5, 9, 1, 0, &attrs);
        let read: Vec<_> = Messages(&bytes).collect();
        assert_eq!(
            (read.len(), read[0].kind, read[0].flags, read[0].sequence),
            (1, 0xa00, 5, 9)
        );
        assert_eq!(read[0].attributes().text(1).as_deref(), Some("ab"));
        assert_eq!(
            Attributes(read[0].attributes().find(2).unwrap()).u32(3),
            Some(7)
        );
    }

    #[test]
    fn malformed_input_ends_the_iteration() {
        assert_eq!(
            Messages(&[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).count(),
            0
        );
        assert_eq!(Messages(&[0xff; 40]).count(), 0);
        assert_eq!(Attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(Attributes(&[9, 0, 1, 0, 1]).count(), 0);
        assert_eq!(UserData::find(&[0, 9, 1], 0), None);
    }
}
