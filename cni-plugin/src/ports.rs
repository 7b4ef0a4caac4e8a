//! Ports to publish, as runtimes say them: CNI's capability `portMappings`, and netavark's `port_mappings`.

use std::num::NonZeroU16;

use serde_json::Value;
use weave_model::{Protocol, PublishedPort};

use crate::error::Error;
use crate::spelling::respelt;

/// The longest range of ports that netavark may ask for at once.
const LONGEST: u16 = 4096;

/// The keys of one port.
const KEYS: [&str; 4] = ["hostPort", "containerPort", "protocol", "hostIP"];

/// The value of the capability `portMappings` (CNI conventions, "Dynamic Plugin specific fields"): a list of objects with
/// `hostPort`, `containerPort`, and perhaps `protocol` and `hostIP`.
pub fn of_capability(field: &str, value: &Value) -> Result<Vec<PublishedPort>, Error> {
    let value = respelt(value, &KEYS);
    let list = value.as_array();
    let list = list.ok_or_else(|| Error::config(field, "not a list"))?;
    let read = |one| {
        Ok(PublishedPort {
            protocol: protocol(field, one, "protocol")?,
            address: address(field, one, "hostIP")?,
            host_port: port(field, one, "hostPort")?,
            port: port(field, one, "containerPort")?,
        })
    };
    list.iter().map(read).collect()
}

/// The list `port_mappings` of netavark: each entry may stand for a range of ports, and for several protocols.
pub fn of_netavark(list: &[Value]) -> Result<Vec<PublishedPort>, Error> {
    let field = "port_mappings";
    let mut ports = Vec::new();
    for one in list {
        let address = address(field, one, "host_ip")?;
        let [first, inner] = ["host_port", "container_port"].map(|key| port(field, one, key));
        let (first, inner) = (first?, inner?);
        let length = match one.get("range").and_then(Value::as_u64) {
            None | Some(0) => 1,
            Some(length) => u16::try_from(length).unwrap_or(u16::MAX),
        };
        if length > LONGEST {
            return Err(Error::config(field, format!("{length} ports are too many")));
        }
        for word in text(field, one, "protocol")?.unwrap_or("tcp").split(',') {
            let protocol = word.trim().parse();
            let protocol: Protocol = protocol.map_err(|error| Error::config(field, error))?;
            for at in 0..length {
                let next = |port: NonZeroU16| {
                    let next = port.checked_add(at);
                    next.ok_or_else(|| Error::config(field, format!("{port} + {at} is no port")))
                };
                ports.push(PublishedPort {
                    protocol,
                    address,
                    host_port: next(first)?,
                    port: next(inner)?,
                });
            }
        }
    }
    Ok(ports)
}

fn text<'a>(field: &str, one: &'a Value, key: &str) -> Result<Option<&'a str>, Error> {
    match one.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(other) => Err(Error::config(field, format!("{key} {other} is not a text"))),
    }
}

fn protocol(field: &str, one: &Value, key: &str) -> Result<Protocol, Error> {
    let word = text(field, one, key)?.map_or(Ok(Protocol::Tcp), str::parse);
    word.map_err(|error| Error::config(field, error))
}

fn address(field: &str, one: &Value, key: &str) -> Result<Option<std::net::IpAddr>, Error> {
    let Some(text) = text(field, one, key)? else {
        return Ok(None);
    };
    let address = text.parse();
    let why = || Error::config(field, format!("{key} \"{text}\" is not an address"));
    address.map(Some).map_err(|_| why())
}

fn port(field: &str, one: &Value, key: &str) -> Result<NonZeroU16, Error> {
    let number = one.get(key).and_then(Value::as_u64);
    let number = number.and_then(|number| u16::try_from(number).ok());
    number.and_then(NonZeroU16::new).ok_or_else(|| {
        let given = one.get(key).unwrap_or(&Value::Null);
        Error::config(field, format!("{key} {given} is not a port"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(ports: Result<Vec<PublishedPort>, Error>) -> Vec<String> {
        ports.unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_capability_is_read() {
        let value = json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
            {"hostPort": 53, "containerPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"},
            {"hostPort": 1, "containerPort": 2, "protocol": "sctp", "hostIP": "::"},
            {"hostPort": 1, "containerPort": 2},
        ]);
        let ports = [
            "8080:80/tcp",
            "192.0.2.1:53:53/udp",
            "[::]:1:2/sctp",
            "1:2/tcp",
        ];
        assert_eq!(shown(of_capability("f", &value)), ports);
        for (wrong, word) in [
            (json!({}), "not a list"),
            (json!([{"containerPort": 80}]), "hostPort null"),
            (json!([{"hostPort": 0, "containerPort": 80}]), "hostPort 0"),
            (
                json!([{"hostPort": 80, "containerPort": 65536}]),
                "containerPort 65536",
            ),
            (
                json!([{"hostPort": 1, "containerPort": 2, "protocol": "icmp"}]),
                "icmp",
            ),
            (
                json!([{"hostPort": 1, "containerPort": 2, "protocol": 6}]),
                "protocol 6",
            ),
            (
                json!([{"hostPort": 1, "containerPort": 2, "hostIP": "here"}]),
                "here",
            ),
        ] {
            let error = of_capability("f", &wrong).unwrap_err();
            assert!(error.to_string().contains(word), "{wrong}: {error}");
        }
    }

    #[test]
    fn ranges_and_protocols_of_netavark_are_taken_apart() {
        let list = [
            json!({"host_ip": "", "host_port": 80, "container_port": 8080, "protocol": "tcp,udp", "range": 2}),
            json!({"host_ip": "192.0.2.1", "host_port": 1, "container_port": 2, "protocol": "sctp", "range": 1}),
        ];
        let ports = [
            "80:8080/tcp",
            "81:8081/tcp",
            "80:8080/udp",
            "81:8081/udp",
            "192.0.2.1:1:2/sctp",
        ];
        assert_eq!(shown(of_netavark(&list)), ports);
        for wrong in [
            json!({"host_port": 65535, "container_port": 1, "protocol": "tcp", "range": 2}),
            json!({"host_port": 1, "container_port": 1, "protocol": "tcp", "range": 65000}),
            json!({"host_port": 1, "container_port": 1, "protocol": "tcp,"}),
        ] {
            assert!(
                of_netavark(std::slice::from_ref(&wrong)).is_err(),
                "{wrong}"
            );
        }
    }
}
