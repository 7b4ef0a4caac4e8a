//! Both engines, by traffic: a host that routes for three containers, another host's container behind it,
//! and an outside, as namespaces without names.
//!
//! Cases that Kubernetes tests too bear the names of its tests (`test/e2e/network`, \[sig-network\]). Each looks at what
//! arrives where, and a mutant of the table or the rules that breaks the rule fails it.
//!
//! Needs root and `ip`; the namespaces end with the test, however it ends.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

/// Runs each case on the engine in the kernel, on the one in user space, which must have had a part in it, and on each
/// mutant that must fail it.
macro_rules! cases {
    ($($case:ident => $($mutant:ident)|+),+ $(,)?) => {
        /// The cases, and the mutants of each.
        pub(crate) const CASES: &[(&str, &[crate::mutants::Mutant])] =
            &[$((stringify!($case), &[$(crate::mutants::Mutant::$mutant),+])),+];
        mod kernel {
            $(#[test] fn $case() { super::$case(weave_model::EngineChoice::Kernel); })+
        }
        mod relay {
            $(#[test] fn $case() {
                crate::carried::by_the_relay(stringify!($case), super::$case);
            })+
        }
        mod mutants {
            $(mod $case {
                $(#[test] #[allow(non_snake_case, reason = "it bears the mutant's name")] fn $mutant() {
                    crate::mutants::must_fail(crate::mutants::Mutant::$mutant, super::super::$case);
                })+
            })+
        }
    };
}

/// The same for cases that the relay has no part in, or fails; `CASES.md` says which.
macro_rules! kernel_cases {
    ($($case:ident => $mutant:ident),+ $(,)?) => {
        /// The cases of the kernel alone, and the mutant of each.
        pub(crate) const OF_THE_KERNEL: &[(&str, &[crate::mutants::Mutant])] =
            &[$((stringify!($case), &[crate::mutants::Mutant::$mutant])),+];
        mod kernel_alone {
            $(#[test] fn $case() { super::$case(weave_model::EngineChoice::Kernel); })+
            mod mutants {
                $(#[test] fn $case() {
                    crate::mutants::must_fail(crate::mutants::Mutant::$mutant, super::super::$case);
                })+
            }
        }
    };
}

mod affinity;
mod balancer;
mod carried;
mod cases;
mod dual;
mod external;
mod granular;
mod hostile;
mod keeping;
mod lab;
mod lifecycle;
mod mutants;
mod relay;
mod relay_apart;
mod relay_blame;
mod relay_crowds;
mod relay_ends;
mod relay_random;
mod relay_udp;
mod restored;
mod rolling;
mod raw;
mod services;
mod slices;
mod udp;
