//! Keys as the conventions spell them. containerd writes `HostPort` where they say `hostPort`, which plugins in Go take
//! for the same, because Go's decoder of JSON does.

use serde_json::Value;

/// A value whose keys are spelt as in `keys` where they differ from one only in case, in lists and objects within too.
pub fn respelt(value: &Value, keys: &[&str]) -> Value {
    match value {
        Value::Array(list) => list.iter().map(|one| respelt(one, keys)).collect(),
        Value::Object(object) => {
            let spelt = object.iter().map(|(key, value)| {
                let meant = keys.iter().find(|meant| meant.eq_ignore_ascii_case(key));
                let key = meant.map_or_else(|| key.clone(), ToString::to_string);
                (key, respelt(value, keys))
            });
            spelt.collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_spelt_as_they_are_meant() {
        let sent = json!([{"HostPort": 1, "containerport": 2, "hostIP": "A", "Other": [{"HOSTIP": null}]}, 3]);
        let read = json!([{"hostPort": 1, "containerPort": 2, "hostIP": "A", "Other": [{"hostIP": null}]}, 3]);
        assert_eq!(
            respelt(&sent, &["hostPort", "containerPort", "hostIP"]),
            read
        );
    }
}
