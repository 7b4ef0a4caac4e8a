//! Reading and writing the mesh's bytes: integers, counted strings and tagged fields, all with bounds.
//!
//! A *field* is tag:u16 | length:u32 | bytes. A reader meets a field that it does not know, carries it or skips it, and
//! goes on: so records and messages can grow. Integers are big-endian.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes that are not what they should be. Says which part, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// Appends to a buffer.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Bytes with their length, u32, before them.
    pub fn counted(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(bytes.len() as u32).bytes(bytes)
    }

    /// A tagged field whose content `fill` writes.
    pub fn field(&mut self, tag: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.u16(tag).u32(0);
        let start = self.0.len();
        fill(self);
        let length = (self.0.len() - start) as u32;
        self.0[start - 4..start].copy_from_slice(&length.to_be_bytes());
        self
    }

    /// Family (4 or 6), address, port.
    pub fn address(&mut self, address: SocketAddr) -> &mut Self {
        match address.ip() {
            IpAddr::V4(ip) => self.u8(4).bytes(&ip.octets()),
            IpAddr::V6(ip) => self.u8(6).bytes(&ip.octets()),
        };
        self.u16(address.port())
    }
}

/// Takes from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`; errors will name `what`.
    pub const fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    /// The error that names what is read.
    pub const fn malformed(&self) -> Malformed {
        Malformed(self.what)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or_else(|| self.malformed())?;
        self.rest = tail;
        Ok(*head)
    }

    /// `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| self.malformed())?;
        self.rest = tail;
        Ok(head)
    }

    /// Bytes after their length; at most `most`.
    pub fn counted(&mut self, most: usize) -> Result<&'a [u8], Malformed> {
        let count = self.u32()? as usize;
        if count > most {
            return Err(self.malformed());
        }
        self.bytes(count)
    }

    /// UTF-8 text after its length; at most `most` bytes.
    pub fn text(&mut self, most: usize) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.counted(most)?).map_err(|_| self.malformed())
    }

    /// The next tagged field: its tag and a reader of its content.
    pub fn field(&mut self) -> Result<(u16, Self), Malformed> {
        let tag = self.u16()?;
        let rest = self.counted(usize::MAX)?;
        Ok((
            tag,
            Self {
                rest,
                what: self.what,
            },
        ))
    }

    /// Family, address, port.
    pub fn address(&mut self) -> Result<SocketAddr, Malformed> {
        let ip = match self.u8()? {
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            _ => return Err(self.malformed()),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    /// What is left.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Fails unless nothing is left.
    pub fn end(&self) -> Result<(), Malformed> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(self.malformed())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let v6: SocketAddr = "[2001:db8::7]:6783".parse().unwrap();
        let mut writer = Writer::new();
        writer.field(7, |w| {
            w.u8(1).u16(2).u32(3).u64(4).counted(b"five").address(v6);
        });
        let mut reader = Reader::new(&writer.0, "test");
        let (tag, mut field) = reader.field().unwrap();
        assert_eq!(tag, 7);
        assert_eq!(
            (field.u8(), field.u16(), field.u32(), field.u64()),
            (Ok(1), Ok(2), Ok(3), Ok(4))
        );
        assert_eq!(field.text(4), Ok("five"));
        assert_eq!(field.address(), Ok(v6));
        assert_eq!((field.end(), reader.end()), (Ok(()), Ok(())));
    }

    #[test]
    fn a_length_never_leads_outside() {
        let mut reader = Reader::new(&[0, 1, 0xff, 0xff, 0xff, 0xff, 9], "test");
        assert!(reader.field().is_err());
        assert!(
            Reader::new(&[0, 0, 0, 5, 1, 2, 3, 4, 5], "test")
                .counted(4)
                .is_err()
        );
        assert!(
            Reader::new(&[5, 0, 0, 0, 0, 0, 0], "test")
                .address()
                .is_err()
        );
    }
}
