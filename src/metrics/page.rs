//! Metrics on their way to text.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{Encoder as _, TextEncoder};
use weave_model::Durations;

/// Metrics that are being collected.
#[derive(Default)]
pub(super) struct Page {
    families: Vec<MetricFamily>,
}

impl Page {
    /// A value that goes up and down, for each set of labels.
    pub(super) fn gauge<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; N],
        values: impl IntoIterator<Item = ([String; N], f64)>,
    ) {
        let metric = |value| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            Metric::from_gauge(gauge)
        };
        self.family((name, help, MetricType::GAUGE), labels, values, metric);
    }

    /// A value that only grows while the node runs, for each set of labels.
    pub(super) fn counter<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; N],
        values: impl IntoIterator<Item = ([String; N], u64)>,
    ) {
        let values = values
            .into_iter()
            .map(|(labels, value)| (labels, value as f64));
        self.seconds_counter(name, help, labels, values);
    }

    /// The same of something that is not counted in whole numbers: seconds.
    pub(super) fn seconds_counter<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; N],
        values: impl IntoIterator<Item = ([String; N], f64)>,
    ) {
        let metric = |value| {
            let mut counter = Counter::default();
            counter.set_value(value);
            let mut metric = Metric::default();
            metric.set_counter(counter);
            metric
        };
        self.family((name, help, MetricType::COUNTER), labels, values, metric);
    }

    /// How long things took, for each set of labels.
    pub(super) fn histogram<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; N],
        values: impl IntoIterator<Item = ([String; N], Durations)>,
    ) {
        let metric = |value: Durations| {
            let bucket = |(bound, count): (std::time::Duration, u64)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(bound.as_secs_f64());
                bucket.set_cumulative_count(count);
                bucket
            };
            let mut histogram = Histogram::default();
            histogram.set_bucket(value.buckets().map(bucket).collect());
            histogram.set_sample_count(value.count());
            histogram.set_sample_sum(value.sum().as_secs_f64());
            let mut metric = Metric::default();
            metric.set_histogram(histogram);
            metric
        };
        self.family((name, help, MetricType::HISTOGRAM), labels, values, metric);
    }

    /// Takes a metric, unless it has no value: Prometheus knows no empty ones.
    fn family<const N: usize, V>(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        labels: [&str; N],
        values: impl IntoIterator<Item = ([String; N], V)>,
        metric: impl Fn(V) -> Metric,
    ) {
        let labelled = |(words, value): ([String; N], V)| {
            let pair = |(label, word): (&str, String)| {
                let mut pair = LabelPair::default();
                pair.set_name(label.to_owned());
                pair.set_value(word);
                pair
            };
            let mut metric = metric(value);
            metric.set_label(labels.into_iter().zip(words).map(pair).collect());
            metric
        };
        let metrics: Vec<Metric> = values.into_iter().map(labelled).collect();
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.families.push(family);
    }

    /// All of them as text.
    pub(super) fn text(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.families, &mut text)
            .expect("a buffer in memory takes all");
        String::from_utf8(text).expect("names and labels are text")
    }
}

/// One value without labels.
pub(super) fn only<V>(value: V) -> [([String; 0], V); 1] {
    [([], value)]
}
