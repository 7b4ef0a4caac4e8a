//! The mark by which the two engines tell whose a packet is.

/// The mark of packets that are the relay's. None of its bits is one that Kubernetes, Calico, Cilium, Tailscale or Docker
/// give a meaning of their own.
pub(crate) const MARK: u32 = 0x30b7;
