//! Floating addresses: what a container has beside its own address, and another may have after it.
//!
//! They come out of a pool, a part of the cluster's range of which the allocator gives nothing away
//! ([`crate::NetworkSpec::floating`]). Who has one stands on the sheet of its node ([`crate::SheetContainer`]), with a
//! stamp: of several that claim one address the newest has it, and of two of the same stamp that of the greater node id.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::NetworkName;

/// The most floating addresses of a container.
pub const MAX_FLOATING: usize = 16;

/// A floating address that a container claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Floating {
    /// The address, IPv4 or IPv6.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "10.45.0.10"))]
    pub ip: IpAddr,
    /// The pool that it is from.
    pub pool: NetworkName,
    /// When it was claimed, in milliseconds since the Unix epoch, and later than any claim that was known then.
    pub stamp: u64,
}
