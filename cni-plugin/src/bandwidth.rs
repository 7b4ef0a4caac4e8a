//! Limits of an interface, as runtimes say them: CNI's capability `bandwidth`.

use std::num::NonZeroU64;

use serde_json::{Map, Value};
use weave_model::{Bandwidth, Rate};

use crate::error::{Error, code};
use crate::spelling::respelt;

/// The keys of each direction: its rate in bits a second, and its burst in bits.
const INGRESS: [&str; 2] = ["ingressRate", "ingressBurst"];
const EGRESS: [&str; 2] = ["egressRate", "egressBurst"];

/// The value of the capability (CNI conventions, "Dynamic Plugin specific fields"): rates and bursts as the container
/// sees them. As for the reference plugin, a rate needs a burst, and 0 means neither.
pub fn of_capability(field: &str, value: &Value) -> Result<Bandwidth, Error> {
    let value = respelt(value, &[INGRESS, EGRESS].concat());
    let object = value.as_object();
    let object = object.ok_or_else(|| Error::config(field, "not an object"))?;
    let known = |key: &str| INGRESS.contains(&key) || EGRESS.contains(&key);
    if let Some((key, value)) = object.iter().find(|(key, _)| !known(key)) {
        let message = format!("{field}.{key} is not supported: {value}");
        return Err(Error::new(code::UNSUPPORTED, message));
    }
    Ok(Bandwidth {
        ingress: rate(field, object, INGRESS)?,
        egress: rate(field, object, EGRESS)?,
    })
}

fn rate(
    field: &str,
    object: &Map<String, Value>,
    [rate, burst]: [&str; 2],
) -> Result<Option<Rate>, Error> {
    let bits = number(field, object, rate)?;
    let most = number(field, object, burst)?;
    match (NonZeroU64::new(bits), most) {
        (None, 0) => Ok(None),
        (Some(_), 0) => Err(Error::config(field, format!("{rate} needs {burst}"))),
        (None, _) => Err(Error::config(field, format!("{burst} needs {rate}"))),
        (Some(rate), burst) => Ok(Some(Rate { rate, burst })),
    }
}

fn number(field: &str, object: &Map<String, Value>, key: &str) -> Result<u64, Error> {
    let value = object.get(key).filter(|value| !value.is_null());
    let number = value.map_or(Some(0), Value::as_u64);
    number.ok_or_else(|| {
        let given = value.unwrap_or(&Value::Null);
        Error::config(field, format!("{key} {given} is not a number of bits"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_capability_is_read() {
        let rate = |rate, burst| NonZeroU64::new(rate).map(|rate| Rate { rate, burst });
        for (value, ingress, egress) in [
            (
                json!({"ingressRate": 8000, "ingressBurst": 80, "egressRate": 9000, "egressBurst": 2147483647}),
                rate(8000, 80),
                rate(9000, 2_147_483_647),
            ),
            (json!({"egressRate": 1, "egressBurst": 1}), None, rate(1, 1)),
            (
                json!({"ingressRate": 0, "ingressBurst": 0, "egressRate": null}),
                None,
                None,
            ),
        ] {
            let read = of_capability("f", &value).unwrap();
            assert_eq!((read.ingress, read.egress), (ingress, egress), "{value}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (wrong, code, word) in [
            (json!([]), code::CONFIG, "not an object"),
            (
                json!({"ingressRate": 8000}),
                code::CONFIG,
                "ingressRate needs ingressBurst",
            ),
            (
                json!({"egressBurst": 8000}),
                code::CONFIG,
                "egressBurst needs egressRate",
            ),
            (
                json!({"egressRate": -1, "egressBurst": 1}),
                code::CONFIG,
                "egressRate -1",
            ),
            (
                json!({"ingressRate": "8M", "ingressBurst": 1}),
                code::CONFIG,
                "\"8M\"",
            ),
            (
                json!({"unshapedSubnets": ["10.0.0.0/8"]}),
                code::UNSUPPORTED,
                "f.unshapedSubnets",
            ),
        ] {
            let error = of_capability("f", &wrong).unwrap_err();
            assert_eq!(error.code, code, "{wrong}");
            assert!(error.to_string().contains(word), "{wrong}: {error}");
        }
    }
}
