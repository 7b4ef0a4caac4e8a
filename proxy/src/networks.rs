//! Which containers a container reaches: networks are apart.
//!
//! The kernel keeps them so where packets leave, by their sources. A relay makes connections of its own, which may leave
//! under the host's name, so it asks here before it makes one.

use std::net::IpAddr;

use ipnet::IpNet;

/// A network besides the default one, in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    /// Its containers' addresses.
    pub range: IpNet,
    /// Whether its containers reach each other and nobody else.
    pub internal: bool,
}

/// All of them; ranges do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

impl FromIterator<Network> for Networks {
    fn from_iter<T: IntoIterator<Item = Network>>(all: T) -> Self {
        let mut all: Vec<Network> = all.into_iter().collect();
        all.sort_by_key(|one| one.range.network());
        Self(all)
    }
}

impl Networks {
    /// Whether packets pass from a container to an address. `containers` is where containers' addresses are from: who is in
    /// no network of these is in the default one.
    pub fn let_pass(&self, from: IpAddr, to: IpAddr, containers: &[IpNet]) -> bool {
        let is_container = || containers.iter().any(|net| net.contains(&to));
        match self.of(from) {
            Some(own) => own.range.contains(&to) || !own.internal && !is_container(),
            None => self.of(to).is_none(),
        }
    }

    fn of(&self, address: IpAddr) -> Option<&Network> {
        let next = self.0.partition_point(|one| one.range.network() <= address);
        let last = self.0[..next].last();
        last.filter(|one| one.range.contains(&address))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_container_reaches_its_own_network_and_what_is_no_containers() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let of = |(range, internal)| Network {
            range: net(range),
            internal,
        };
        let networks: Networks = [
            ("10.45.0.0/16", false),
            ("fd77::d:0/112", false),
            ("10.33.0.0/20", true),
            ("fd77::e:0/112", true),
        ]
        .map(of)
        .into_iter()
        .collect();
        let containers = [net("10.32.0.0/12"), net("fd77::/48")];
        let families = [
            ["10.32.0.2", "10.45.255.255", "10.33.0.0", "192.0.2.1"],
            ["fd77::2", "fd77::d:ffff", "fd77::e:0", "2001:db8::1"],
        ];
        for family in families {
            // From the default network, from one, and from one that is internal.
            let reached = [
                [true, false, false, true],
                [false, true, false, true],
                [false, false, true, false],
            ];
            for (from, reached) in family.iter().zip(reached) {
                for (to, reached) in family.iter().zip(reached) {
                    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
                    let passes = networks.let_pass(from, to, &containers);
                    assert_eq!(passes, reached, "{from} to {to}");
                    assert!(Networks::default().let_pass(from, to, &containers));
                }
            }
        }
    }
}
