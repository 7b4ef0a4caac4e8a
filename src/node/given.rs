//! What Docker was given and has not given back: a pure table, kept in the node's book because Docker says nothing
//! twice.
//!
//! Docker first asks for addresses, one call for each family, and later makes an endpoint that has them. In a cluster
//! the two addresses of a container lie at one offset, so a [`Lease`] is an offset and who of the families has it. Which
//! two calls belong together is told by the hardware address, which Docker chooses first and names in both. A lease is
//! over when both addresses were given back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weave_model::docker::Family;
use weave_model::{CniName, IfName, Mac, NetworkName};

/// Networks, addresses and endpoints of Docker's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Table {
    networks: BTreeMap<CniName, Network>,
    endpoints: BTreeMap<CniName, Endpoint>,
    /// The oldest first.
    leases: Vec<Lease>,
    /// The number of the next lease.
    next: u64,
}

/// What was asked for with a network of Docker's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    /// The MTU of its containers' interfaces, in bytes; its network's, or else the node's, when absent.
    pub(super) mtu: Option<u16>,
    /// The network of the cluster that it is.
    #[serde(default = "NetworkName::default_network")]
    pub(super) network: NetworkName,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            mtu: None,
            network: NetworkName::default_network(),
        }
    }
}

/// A container's place on a network, from before it has an interface until after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Endpoint {
    /// The network of Docker's.
    pub(super) network: CniName,
    /// Its addresses, as an offset into both ranges.
    pub(super) offset: u32,
    /// Whether it has its IPv6 address.
    pub(super) ipv6: bool,
    /// The hardware address that Docker chose; made from the IPv4 address when absent.
    pub(super) mac: Option<Mac>,
    /// The host's end of its pair, once there is one.
    pub(super) outer: Option<IfName>,
}

/// An offset that Docker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    number: u64,
    offset: u32,
    mac: Option<Mac>,
    v4: bool,
    v6: bool,
}

/// Why an address cannot be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotGiven {
    /// Docker has it already.
    Taken,
    /// Its other address lies at this offset, not at the one that is asked for.
    Apart(u32),
}

impl Lease {
    const fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    const fn set(&mut self, family: Family, given: bool) {
        match family {
            Family::V4 => self.v4 = given,
            Family::V6 => self.v6 = given,
        }
    }
}

/// By which name the allocator knows a lease. No container's name begins with a slash.
pub(super) fn lease_id(number: u64) -> String {
    format!("/docker/{number}")
}

impl Table {
    /// Gives the address of one family at the offset that the same container has for the other; a container that asks
    /// again before it has an endpoint is answered the same. `None` when a new lease is needed.
    pub(super) fn complete(
        &mut self,
        family: Family,
        mac: Option<Mac>,
        want: Option<u32>,
    ) -> Result<Option<u32>, NotGiven> {
        let used: Vec<u32> = self.endpoints.values().map(|one| one.offset).collect();
        let same =
            |lease: &&mut Lease| mac.is_some() && lease.mac == mac && !used.contains(&lease.offset);
        if let Some(lease) = self.leases.iter_mut().rev().find(same) {
            return match want.filter(|want| *want != lease.offset) {
                Some(_) => Err(NotGiven::Apart(lease.offset)),
                None => {
                    lease.set(family, true);
                    Ok(Some(lease.offset))
                }
            };
        }
        match self.leases.iter().any(|lease| Some(lease.offset) == want) {
            true => Err(NotGiven::Taken),
            false => Ok(None),
        }
    }

    /// The number that the next lease gets.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// Writes a new lease down: of one family, at an offset that the allocator gave under [`Table::next`].
    pub(super) fn add(&mut self, family: Family, mac: Option<Mac>, offset: u32) {
        let mut lease = Lease {
            number: self.next,
            offset,
            mac,
            v4: false,
            v6: false,
        };
        lease.set(family, true);
        self.leases.push(lease);
        self.next += 1;
    }

    /// Takes the address of one family back; the lease's number if it is over with that.
    pub(super) fn give_back(&mut self, family: Family, offset: u32) -> Option<u64> {
        let at = self.leases.iter().position(|one| one.offset == offset)?;
        self.leases[at].set(family, false);
        let Lease { number, v4, v6, .. } = self.leases[at];
        if v4 || v6 {
            return None;
        }
        self.leases.remove(at);
        Some(number)
    }

    /// Whether Docker has the address of this family at an offset.
    pub(super) fn is_given(&self, family: Family, offset: u32) -> bool {
        let mut leases = self.leases.iter();
        leases.any(|lease| lease.offset == offset && lease.has(family))
    }

    /// The name of each lease for the allocator, and its offset.
    pub(super) fn leases(&self) -> impl Iterator<Item = (String, u32)> {
        let leases = self.leases.iter();
        leases.map(|lease| (lease_id(lease.number), lease.offset))
    }

    /// Writes a network down, over a former one of that name.
    pub(super) fn add_network(&mut self, name: CniName, network: Network) {
        self.networks.insert(name, network);
    }

    /// Strikes a network out.
    pub(super) fn remove_network(&mut self, name: &CniName) {
        self.networks.remove(name);
    }

    /// What was asked for with a network; of one that is not known, nothing.
    pub(super) fn network(&self, name: &CniName) -> Network {
        self.networks.get(name).cloned().unwrap_or_default()
    }

    /// Whether a network of Docker's is this network of the cluster.
    pub(super) fn uses(&self, name: &NetworkName) -> bool {
        self.networks.values().any(|one| one.network == *name)
    }

    /// Writes an endpoint down, over a former one of that name.
    pub(super) fn add_endpoint(&mut self, name: CniName, endpoint: Endpoint) {
        self.endpoints.insert(name, endpoint);
    }

    /// Strikes an endpoint out.
    pub(super) fn remove_endpoint(&mut self, name: &CniName) -> Option<Endpoint> {
        self.endpoints.remove(name)
    }

    /// An endpoint.
    pub(super) fn endpoint(&self, name: &CniName) -> Option<&Endpoint> {
        self.endpoints.get(name)
    }

    /// The names of all endpoints.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = &CniName> {
        self.endpoints.keys()
    }

    /// Who has an address.
    pub(super) fn holder(&self, offset: u32) -> Option<&CniName> {
        let mut endpoints = self.endpoints.iter();
        endpoints
            .find(|(_, endpoint)| endpoint.offset == offset)
            .map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Family::{V4, V6};

    fn mac(last: u8) -> Option<Mac> {
        format!("02:42:00:00:00:{last:02x}").parse().ok()
    }

    fn endpoint(offset: u32) -> Endpoint {
        Endpoint {
            network: "n".parse().unwrap(),
            offset,
            ipv6: false,
            mac: mac(1),
            outer: None,
        }
    }

    #[test]
    fn the_addresses_of_one_container_lie_at_one_offset_whichever_comes_first() {
        for [first, second] in [[V4, V6], [V6, V4]] {
            let mut table = Table::default();
            assert_eq!(table.complete(first, mac(1), None), Ok(None));
            table.add(first, mac(1), 9);
            assert_eq!(table.complete(second, mac(2), None), Ok(None), "another's");
            assert_eq!(
                table.complete(second, mac(1), Some(8)),
                Err(NotGiven::Apart(9))
            );
            for _ in 0..2 {
                assert_eq!(table.complete(second, mac(1), None), Ok(Some(9)));
            }
            assert!(table.is_given(V4, 9) && table.is_given(V6, 9));
            assert_eq!(table.give_back(first, 9), None);
            assert_eq!(table.give_back(second, 9), Some(0));
            assert_eq!(table.give_back(second, 9), None, "twice is fine");
            assert_eq!(table.leases().count(), 0);
        }
    }

    #[test]
    fn a_hardware_address_twice_does_not_share_an_address() {
        let mut table = Table::default();
        table.add(V4, mac(1), 9);
        table.add_endpoint("e".parse().unwrap(), endpoint(9));
        assert_eq!(table.complete(V4, mac(1), None), Ok(None));
        assert_eq!(
            table.complete(V6, mac(1), None),
            Ok(None),
            "that one is in use without"
        );
        table.add(V4, mac(1), 10);
        assert_eq!(table.complete(V6, mac(1), None), Ok(Some(10)));
        let ids: Vec<_> = table.leases().collect();
        assert_eq!(
            ids,
            [("/docker/0".to_owned(), 9), ("/docker/1".to_owned(), 10)]
        );
    }

    #[test]
    fn an_address_that_docker_has_is_not_given_again() {
        let mut table = Table::default();
        table.add(V4, None, 9);
        assert_eq!(table.complete(V4, mac(1), Some(9)), Err(NotGiven::Taken));
        assert_eq!(table.complete(V6, None, None), Ok(None));
        assert_eq!(table.complete(V4, mac(1), Some(10)), Ok(None));
    }
}
