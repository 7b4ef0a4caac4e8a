//! Where addresses may come from, as runtimes say it: CNI's capability `ipRanges`.

use serde_json::{Value, json};
use weave_model::AddressRange;

use crate::error::{Error, code};
use crate::spelling::respelt;

/// The keys of one range.
const KEYS: [&str; 4] = ["subnet", "rangeStart", "rangeEnd", "gateway"];

/// The value of the capability `ipRanges` (CNI conventions, "Dynamic Plugin specific fields"): a list of range sets, from
/// each of which a container gets one address. Weave gives one of IPv4, and the IPv6 address at the same place, so there
/// can be one set, of IPv4.
pub fn of_capability(field: &str, value: &Value) -> Result<Vec<AddressRange>, Error> {
    let value = respelt(value, &KEYS);
    let sets = value.as_array();
    let sets = sets.and_then(|sets| sets.iter().map(Value::as_array).collect::<Option<Vec<_>>>());
    let sets = sets.ok_or_else(|| Error::config(field, "not a list of lists of ranges"))?;
    match sets[..] {
        [] => Ok(Vec::new()),
        [set] => set.iter().map(|one| range(field, one)).collect(),
        _ => {
            let message = format!(
                "{field} is not supported with {} range sets: {value}",
                sets.len()
            );
            let fix =
                "give one set, of IPv4: the IPv6 address lies at the same place of the network";
            Err(Error::new(code::UNSUPPORTED, message).with(fix))
        }
    }
}

fn range(field: &str, one: &Value) -> Result<AddressRange, Error> {
    let object = one.as_object();
    let object = object.ok_or_else(|| Error::config(field, format!("{one} is not a range")))?;
    if let Some((key, value)) = object.iter().find(|(key, _)| !KEYS.contains(&key.as_str())) {
        let message = format!("{field}.{key} is not supported: {value}");
        return Err(Error::new(code::UNSUPPORTED, message));
    }
    let [subnet, first, last, gateway] = KEYS.map(|key| {
        let value = object.get(key).filter(|value| **value != json!(""));
        value.unwrap_or(&Value::Null)
    });
    if subnet.as_str().is_some_and(|subnet| subnet.contains(':')) {
        let message = format!("{field} is not supported with IPv6: {subnet}");
        let fix = "give the IPv4 range: the IPv6 address lies at the same place of the network";
        return Err(Error::new(code::UNSUPPORTED, message).with(fix));
    }
    let written = json!({"subnet": subnet, "first": first, "last": last, "gateway": gateway});
    serde_json::from_value(written).map_err(|why| Error::config(field, format!("{one}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &Value) -> Result<Vec<AddressRange>, Error> {
        of_capability("runtimeConfig.ipRanges", value)
    }

    #[test]
    fn one_set_is_read_however_its_keys_are_spelt() {
        let sent = json!([[
            {"subnet": "10.32.4.0/24", "rangeStart": "10.32.4.10", "rangeEnd": "10.32.4.12", "gateway": "10.32.0.1"},
            {"Subnet": "10.32.5.0/24", "RangeStart": "", "RangeEnd": null},
        ]]);
        let ranges = read(&sent).unwrap();
        let runs: Vec<String> = ranges
            .iter()
            .flat_map(AddressRange::runs)
            .map(|(first, last)| format!("{first}-{last}"))
            .collect();
        assert_eq!(runs, ["10.32.4.10-10.32.4.12", "10.32.5.2-10.32.5.254"]);
        assert_eq!(ranges[0].gateway(), "10.32.0.1".parse().ok());
        assert_eq!(read(&json!([])).unwrap(), []);
        assert_eq!(read(&json!([[]])).unwrap(), []);
    }

    #[test]
    fn others_are_refused_with_what_is_wrong() {
        let one = json!({"subnet": "10.32.4.0/24"});
        for (sent, code, said) in [
            (json!("10.32.4.0/24"), code::CONFIG, "list of lists"),
            (json!([one]), code::CONFIG, "list of lists"),
            (json!([["10.32.4.0/24"]]), code::CONFIG, "not a range"),
            (json!([[{}]]), code::CONFIG, "invalid type: null"),
            (json!([[one], [one]]), code::UNSUPPORTED, "2 range sets"),
            (
                json!([[{"subnet": "fd00::/64"}]]),
                code::UNSUPPORTED,
                "IPv6",
            ),
            (
                json!([[{"subnet": "10.32.4.0/24", "vlan": 7}]]),
                code::UNSUPPORTED,
                "vlan is not supported: 7",
            ),
            (
                json!([[{"subnet": "10.32.4.1/24"}]]),
                code::CONFIG,
                "the subnet is 10.32.4.0/24",
            ),
        ] {
            let refused = read(&sent).unwrap_err();
            assert_eq!(refused.code, code, "{sent}: {refused}");
            assert!(refused.to_string().contains(said), "{sent}: {refused}");
        }
    }
}
