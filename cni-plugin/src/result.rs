//! The result of ADD in the words of each version, and what CHECK reads in one.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;
use weave_model::api::{Attachment, CniResult};

use crate::error::{Error, code};
use crate::version::Version;

/// The result for an attachment. `netns` is how the runtime names the namespace, which may not be how the node does.
pub fn of_attachment(
    attachment: &Attachment,
    netns: &str,
    dns: Option<&Value>,
    version: Version,
) -> Result<Value, Error> {
    let mut result = CniResult::from(attachment);
    version.as_str().clone_into(&mut result.cni_version);
    for interface in &mut result.interfaces {
        interface.sandbox = interface.sandbox.take().map(|_| netns.to_owned());
    }
    let mut value = serde_json::to_value(result).map_err(|error| {
        Error::new(code::NODE, format!("the result cannot be written: {error}"))
    })?;
    if let Some(dns) = dns {
        value["dns"] = dns.clone();
    }
    if version < Version::V1_1_0 {
        for interface in objects(&mut value, "interfaces") {
            interface.remove("mtu");
        }
    }
    if version < Version::V1_0_0 {
        for ip in objects(&mut value, "ips") {
            let v6 = ip
                .get("gateway")
                .and_then(Value::as_str)
                .is_some_and(|ip| ip.contains(':'));
            ip.insert("version".to_owned(), if v6 { "6" } else { "4" }.into());
        }
    }
    Ok(value)
}

fn objects<'a>(
    value: &'a mut Value,
    key: &str,
) -> impl Iterator<Item = &'a mut serde_json::Map<String, Value>> {
    let list = value.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Whether a result names an interface on the host that is one of ours: `wv` and 10 hex digits.
pub fn has_ours(result: &Value) -> bool {
    let is_ours = |interface: &Value| {
        let name = interface.get("name").and_then(Value::as_str);
        let digits = name
            .and_then(|name| name.strip_prefix("wv"))
            .unwrap_or_default();
        digits.len() == 10 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    list(result, "interfaces").any(is_ours)
}

/// The addresses that a result gives, whichever interface they are on.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    list(result, "ips")
        .filter_map(|ip| ip.get("address")?.as_str()?.parse::<IpNet>().ok())
        .map(|net| net.addr())
        .collect()
}

fn list<'a>(result: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    result
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}
