//! Metrics on their way to text.

use prometheus::{Encoder as _, GaugeVec, IntCounterVec, Opts, Registry, TextEncoder};

/// Metrics that are being collected.
#[derive(Default)]
pub(super) struct Page {
    registry: Registry,
}

const LAWFUL: &str = "names and labels are literals, each used once";

impl Page {
    /// A value that goes up and down, for each set of labels.
    pub(super) fn gauge<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; N],
        values: impl IntoIterator<Item = ([String; N], f64)>,
    ) {
        let gauge = GaugeVec::new(Opts::new(name, help), &labels).expect(LAWFUL);
        self.registry
            .register(Box::new(gauge.clone()))
            .expect(LAWFUL);
        for (labels, value) in values {
            gauge.with_label_values(&labels).set(value);
        }
    }

    /// A value that only grows while the node runs, for each set of labels.
    pub(super) fn counter<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; N],
        values: impl IntoIterator<Item = ([String; N], u64)>,
    ) {
        let counter = IntCounterVec::new(Opts::new(name, help), &labels).expect(LAWFUL);
        self.registry
            .register(Box::new(counter.clone()))
            .expect(LAWFUL);
        for (labels, value) in values {
            counter.with_label_values(&labels).inc_by(value);
        }
    }

    /// All of them as text.
    pub(super) fn text(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("a buffer in memory takes all");
        String::from_utf8(text).expect("names and labels are text")
    }
}

/// One value without labels.
pub(super) fn only<V>(value: V) -> [([String; 0], V); 1] {
    [([], value)]
}
