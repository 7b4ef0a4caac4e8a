//! Whatever a runtime sends, the plugin answers: never a panic, always a code of the specification.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use proptest::collection::{hash_map, vec};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use weave_cni::config::Config;
use weave_cni::environment::Environment;
use weave_cni::netavark::{Verb, run};

/// Values as they come in JSON, three levels deep, with the texts that mean something here among them.
fn value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "\\PC{0,20}",
        "10\\.32\\.0\\.[0-9]{1,3}(/[0-9]{1,2})?",
        "fd00::[0-9a-f]{1,4}",
        "[0-9a-f:]{17}"
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let key = prop_oneof![
            Just("cni"),
            Just("ips"),
            Just("mac"),
            Just("dns"),
            Just("labels"),
            Just("key"),
            Just("value"),
            Just("type"),
            Just("servers"),
            Just("aliases"),
            Just("ipRanges"),
            Just("subnet"),
            Just("rangeStart"),
            Just("containerID"),
            Just("ifname"),
            Just("portMappings"),
            Just("routes"),
        ];
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            hash_map(key.prop_map(str::to_owned), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn config() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("mtu"),
        Just("socket"),
        Just("network"),
        Just("ipam"),
        Just("dns"),
        Just("args"),
        Just("runtimeConfig"),
        Just("prevResult"),
        Just("cni.dev/valid-attachments"),
        Just("cni.dev/attachments"),
        Just("name"),
        Just("other"),
    ];
    hash_map(key, value(), 0..6).prop_map(|fields| {
        let mut object = Map::new();
        object.insert("cniVersion".to_owned(), json!("1.1.0"));
        object.insert("name".to_owned(), json!("net"));
        object.extend(
            fields
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value)),
        );
        Value::Object(object)
    })
}

fn environment(verb: &str, args: Vec<u8>) -> Result<Environment, weave_cni::error::Error> {
    Environment::read(|name| match name {
        "CNI_COMMAND" => Some(verb.into()),
        "CNI_ARGS" => Some(OsString::from_vec(args.clone())),
        _ => None,
    })
}

/// What netavark sends, with strange things in strange places.
fn netavark() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("container_id"),
        Just("container_name"),
        Just("port_mappings"),
        Just("network"),
        Just("network_options"),
        Just("subnets"),
        Just("options"),
        Just("internal"),
    ];
    let inner = hash_map(
        prop_oneof![
            Just("name"),
            Just("options"),
            Just("interface_name"),
            Just("static_ips"),
            Just("static_mac"),
            Just("mtu"),
        ]
        .prop_map(str::to_owned),
        value(),
        0..4,
    );
    let inner = inner.prop_map(|map| Value::Object(map.into_iter().collect()));
    hash_map(
        key.prop_map(str::to_owned),
        prop_oneof![value(), inner],
        0..6,
    )
    .prop_map(|changed| {
        let mut whole = json!({
            "container_id": "75f1", "container_name": "web", "port_mappings": null,
            "network": {"name": "weave", "driver": "weave", "id": "2f", "options": null},
            "network_options": {"interface_name": "eth0", "static_ips": ["10.32.0.9"]},
        });
        for (key, value) in changed {
            whole[key] = value;
        }
        whole
    })
}

proptest! {
    #[test]
    fn what_netavark_sends_is_done_or_refused(sent in netavark()) {
        let (bytes, nowhere) = (sent.to_string().into_bytes(), Some("/nowhere/weaved.sock".into()));
        match run(&Verb::Create, &bytes, None) {
            Ok(made) => prop_assert_eq!(&made.unwrap()["ipam_options"]["driver"], "none"),
            Err(error) => prop_assert!([2, 7].contains(&error.code), "{}", error),
        }
        let error = run(&Verb::Setup("/nowhere".to_owned()), &bytes, nowhere).unwrap_err();
        prop_assert!([2, 6, 7, 11].contains(&error.code), "{}", error);
    }

    #[test]
    fn a_configuration_is_read_or_refused(config in config(), verb in prop_oneof![Just("ADD"), Just("DEL"), Just("CHECK"), Just("GC"), Just("STATUS")]) {
        let environment = environment(verb, Vec::new()).unwrap();
        match Config::read(&environment, config.to_string().as_bytes()) {
            Ok(read) => {
                prop_assert!(config.get("other").is_none() || matches!(verb, "DEL" | "GC"), "a field is passed over");
                prop_assert_eq!(read.name.as_str(), config["name"].as_str().unwrap());
            }
            Err(error) => prop_assert!([2, 7].contains(&error.code), "{}", error),
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let environment = environment("ADD", Vec::new()).unwrap();
        let error = Config::read(&environment, &bytes).unwrap_err();
        prop_assert!([1, 6].contains(&error.code), "{}", error);
    }

    #[test]
    fn any_arguments_are_read_or_refused(args in vec(any::<u8>(), 0..60)) {
        if let Err(error) = environment("ADD", args).and_then(|environment| environment.args()) {
            prop_assert_eq!(error.code, 4);
        }
    }

    #[test]
    fn arguments_with_the_known_keys_are_read_or_refused(pairs in vec(("(IP|MAC|IgnoreUnknown|K8S_POD_NAME|X)", "[0-9a-z.:/-]{0,20}"), 0..6)) {
        let text: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        if let Err(error) = environment("ADD", text.join(";").into_bytes()).unwrap().args() {
            prop_assert_eq!(error.code, 4);
        }
    }
}
