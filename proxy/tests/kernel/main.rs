//! Both engines, by traffic: a host that routes for three containers, another host's container behind it,
//! and an outside, as namespaces without names.
//!
//! Cases that Kubernetes tests too bear the names of its tests (`test/e2e/network`, \[sig-network\]). Each looks at what
//! arrives where, and a mutant of the table or the rules that breaks the rule fails it.
//!
//! Needs root and `ip`; the namespaces end with the test, however it ends.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

/// Runs each case on the engine in the kernel and on the one in user space.
macro_rules! cases {
    ($($case:ident),+ $(,)?) => {
        mod kernel {
            $(#[test] fn $case() { super::$case(weave_model::EngineChoice::Kernel); })+
        }
        mod relay {
            $(#[test] fn $case() { super::$case(weave_model::EngineChoice::Relay); })+
        }
    };
}

mod affinity;
mod external;
mod keeping;
mod lab;
mod relay;
mod relay_udp;
mod rolling;
mod services;
mod udp;
