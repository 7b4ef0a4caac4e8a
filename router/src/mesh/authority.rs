//! Signing in the cluster's name: with its key, or as an admin.
//!
//! The node that made the cluster signs with the cluster's key; an admin signs with its own and sends its certificates
//! along. Both make the same things (proofs for joiners, certificates, removals), and members tell no difference: they
//! check the [`Chain`]. What a node that was removed signed as an admin counts no longer, but for what its removal
//! keeps (see [`super::removal`]).

use weave_model::NodeId;

use super::cluster::{Certificate, Chain, ClusterKey, ClusterPublic, certificate_message};
use crate::keys::NodeKeys;

/// Who may sign in the cluster's name.
#[derive(Clone, Debug)]
pub enum Authority<'a> {
    /// The node that made the cluster.
    Key(&'a ClusterKey),
    /// A node with an admin's certificate.
    Admin {
        /// Whose signature this is in the end.
        cluster: ClusterPublic,
        /// The node's keys.
        keys: &'a NodeKeys,
        /// Its certificates.
        chain: Chain,
    },
}

impl<'a> Authority<'a> {
    /// The authority that a node has; `None` if it has none.
    pub fn of(
        key: Option<&'a ClusterKey>,
        keys: &'a NodeKeys,
        certificate: &Certificate,
        cluster: ClusterPublic,
    ) -> Option<Self> {
        if let Some(key) = key {
            return Some(Self::Key(key));
        }
        let chain = certificate.as_signer(keys.public())?;
        Some(Self::Admin {
            cluster,
            keys,
            chain,
        })
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterPublic {
        match self {
            Self::Key(key) => key.public(),
            Self::Admin { cluster, .. } => *cluster,
        }
    }

    /// What has to go with every signature.
    pub fn chain(&self) -> Chain {
        match self {
            Self::Key(_) => Chain::default(),
            Self::Admin { chain, .. } => chain.clone(),
        }
    }

    /// A signature over `message`, which starts with a label of its own kind.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        match self {
            Self::Key(key) => key.sign(message),
            Self::Admin { keys, .. } => keys.sign(message),
        }
    }

    /// Makes `node` a member, or an admin.
    pub fn certify(&self, node: NodeId, admin: bool, issued: u64) -> Certificate {
        let message = certificate_message(self.cluster().id(), node, admin, issued);
        Certificate {
            node,
            admin,
            issued,
            chain: self.chain(),
            signature: self.sign(&message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::MAX_LINKS;
    use super::super::codec::{Reader, Writer};
    use super::*;

    fn keys(seed: u8) -> NodeKeys {
        NodeKeys::from_bytes(&[seed; 64])
    }

    #[test]
    fn only_the_cluster_makes_members() {
        let ours = ClusterKey::from_bytes(&[1; 32]);
        let theirs = ClusterKey::from_bytes(&[2; 32]);
        let node = NodeId::from_bytes([3; 32]);
        let certificate = Authority::Key(&ours).certify(node, false, 1_700_000_000);
        let mut bytes = Writer::new();
        certificate.write(&mut bytes);
        assert_eq!(
            Certificate::read(&mut Reader::new(&bytes.0, "certificate")).as_ref(),
            Ok(&certificate)
        );
        assert!(certificate.verify(&ours.public()));
        assert!(!certificate.verify(&theirs.public()));
        let admin = Certificate {
            admin: true,
            ..certificate.clone()
        };
        assert!(!admin.verify(&ours.public()));
        let other = Certificate {
            node: NodeId::from_bytes([4; 32]),
            ..certificate
        };
        assert!(!other.verify(&ours.public()));
    }

    #[test]
    fn an_admin_signs_in_the_cluster_s_name_and_a_member_does_not() {
        let key = ClusterKey::from_bytes(&[1; 32]);
        let cluster = key.public();
        let (admin, member) = (keys(1), keys(2));
        let office = Authority::Key(&key).certify(admin.id(), true, 5);
        let authority = Authority::of(None, &admin, &office, cluster).unwrap();
        let certificate = authority.certify(member.id(), false, 6);
        assert!(certificate.verify(&cluster));
        assert_eq!(certificate.chain.admins().collect::<Vec<_>>(), [admin.id()]);
        assert!(
            Authority::of(None, &member, &certificate, cluster).is_none(),
            "a member is no admin"
        );
        let forged = Certificate {
            admin: true,
            ..certificate
        };
        let usurper = Authority::of(None, &member, &forged, cluster).unwrap();
        assert!(!usurper.certify(keys(3).id(), false, 7).verify(&cluster));
        let foreign = ClusterKey::from_bytes(&[2; 32]);
        let elsewhere = Authority::Key(&foreign).certify(admin.id(), true, 5);
        let stranger = Authority::of(None, &admin, &elsewhere, cluster).unwrap();
        assert!(!stranger.certify(keys(3).id(), false, 7).verify(&cluster));
    }

    #[test]
    fn a_chain_of_admins_ends() {
        let key = ClusterKey::from_bytes(&[1; 32]);
        let cluster = key.public();
        let mut office = Authority::Key(&key).certify(keys(1).id(), true, 0);
        for n in 1..=MAX_LINKS as u8 {
            let keys_n = keys(n);
            let authority = Authority::of(None, &keys_n, &office, cluster).unwrap();
            office = authority.certify(keys(n + 1).id(), true, u64::from(n));
            assert!(office.verify(&cluster), "{n} links");
            let mut bytes = Writer::new();
            office.write(&mut bytes);
            assert!(bytes.0.len() <= Certificate::MAX_LEN);
            let read = Certificate::read(&mut Reader::new(&bytes.0, "certificate"));
            assert_eq!(read.as_ref(), Ok(&office));
        }
        let last = keys(MAX_LINKS as u8 + 1);
        assert!(Authority::of(None, &last, &office, cluster).is_none());
    }
}
