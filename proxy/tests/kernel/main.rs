//! The engine in the kernel, by traffic: a host that routes for three containers, another host's container behind it,
//! and an outside, as namespaces without names.
//!
//! Cases that Kubernetes tests too bear the names of its tests (`test/e2e/network`, \[sig-network\]). Each looks at what
//! arrives where, and a mutant of the table or the rules that breaks the rule fails it.
//!
//! Needs root and `ip`; the namespaces end with the test, however it ends.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod affinity;
mod external;
mod keeping;
mod lab;
mod services;
mod udp;
