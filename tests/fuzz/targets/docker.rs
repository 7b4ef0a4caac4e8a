//! What Docker, or whoever reaches its plugin's socket, sends.

use weave_model::docker::{Call, EndpointRef, PoolId};

use super::Input;

/// The calls with a body of their own.
const CALLS: [&str; 12] = [
    "Plugin.Activate",
    "IpamDriver.RequestPool",
    "IpamDriver.ReleasePool",
    "IpamDriver.RequestAddress",
    "IpamDriver.ReleaseAddress",
    "NetworkDriver.CreateNetwork",
    "NetworkDriver.DeleteNetwork",
    "NetworkDriver.CreateEndpoint",
    "NetworkDriver.EndpointOperInfo",
    "NetworkDriver.DeleteEndpoint",
    "NetworkDriver.Join",
    "NetworkDriver.Leave",
];

/// The first byte chooses a call, the rest is its body: names in what is accepted are only names, and a pool is written
/// as it was read.
pub(super) fn call(data: &[u8]) {
    let mut input = Input(data);
    let name = CALLS[usize::from(input.u8()) % CALLS.len()];
    let read = Call::read(name, &mut serde_json::Deserializer::from_slice(input.0));
    let Ok(call) = read else {
        return;
    };
    match call.expect("every one of these is a call") {
        Call::ReleasePool(what) => pool(&what.pool),
        Call::RequestAddress(request) => pool(&request.pool),
        Call::ReleaseAddress(what) => pool(&what.pool),
        Call::CreateNetwork(request) => name_is_safe(request.network.as_str()),
        Call::DeleteNetwork(what) => name_is_safe(what.network.as_str()),
        Call::CreateEndpoint(request) => {
            name_is_safe(request.network.as_str());
            name_is_safe(request.endpoint.as_str());
        }
        Call::Join(request) => names(&request.endpoint),
        Call::EndpointInfo(what) | Call::DeleteEndpoint(what) | Call::Leave(what) => names(&what),
        _ => {}
    }
}

fn names(what: &EndpointRef) {
    name_is_safe(what.network.as_str());
    name_is_safe(what.endpoint.as_str());
}

/// It becomes a container's name and a part of a device's alias.
fn name_is_safe(name: &str) {
    assert!((1..=200).contains(&name.len()));
    assert!(
        name.bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/')
    );
    assert!(name != "." && name != "..");
}

fn pool(pool: &PoolId) {
    assert_eq!(pool.to_string().parse().as_ref(), Ok(pool));
}

pub(super) fn call_seeds() -> Vec<Vec<u8>> {
    let bodies: [(u8, &str); 9] = [
        (0, "{}"),
        (
            1,
            r#"{"AddressSpace":"weave","Pool":"10.32.0.0/12","SubPool":"","Options":{"a":"1"},"V6":false}"#,
        ),
        (2, r#"{"PoolID":"weave/default/v6"}"#),
        (
            3,
            r#"{"PoolID":"weave/default/v4","Address":"","Options":{"com.docker.network.endpoint.macaddress":"02:42:0a:20:00:09"}}"#,
        ),
        (4, r#"{"PoolID":"weave/default/v4","Address":"10.32.0.9"}"#),
        (
            5,
            r#"{"NetworkID":"b4d1","Options":{"com.docker.network.generic":{"com.docker.network.driver.mtu":"1400"}},"IPv4Data":[{"AddressSpace":"weave","Gateway":"10.32.0.1/12","Pool":"10.32.0.0/12"}],"IPv6Data":null}"#,
        ),
        (
            7,
            r#"{"NetworkID":"b4d1","EndpointID":"e2d9","Interface":{"Address":"10.32.0.9/12","AddressIPv6":"fd00::9/128","MacAddress":"02:42:0a:20:00:09"},"Options":{}}"#,
        ),
        (
            10,
            r#"{"NetworkID":"b4d1","EndpointID":"e2d9","SandboxKey":"/var/run/docker/netns/a1","Options":{}}"#,
        ),
        (11, r#"{"NetworkID":"b4d1","EndpointID":"../x"}"#),
    ];
    bodies
        .iter()
        .map(|(choice, body)| [&[*choice][..], body.as_bytes()].concat())
        .collect()
}
