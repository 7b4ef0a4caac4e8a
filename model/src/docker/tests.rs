use super::*;

fn read(name: &str, body: &str) -> Option<Call> {
    Call::read(name, &mut serde_json::Deserializer::from_str(body)).unwrap()
}

fn fails(name: &str, body: &str) -> String {
    let read = Call::read(name, &mut serde_json::Deserializer::from_str(body));
    read.unwrap_err().to_string()
}

const NETWORK: &str = "b4d1c0ffee";
const ENDPOINT: &str = "e2d9";

#[test]
fn what_docker_20_10_sends_is_understood() {
    let Some(Call::RequestPool(pool)) = read(
        "IpamDriver.RequestPool",
        r#"{"AddressSpace":"weave","Pool":"","SubPool":"","Options":{},"V6":false}"#,
    ) else {
        panic!("a pool is asked for");
    };
    assert_eq!((pool.pool, pool.sub_pool, pool.v6), (None, None, false));

    let Some(Call::RequestAddress(address)) = read(
        "IpamDriver.RequestAddress",
        r#"{"PoolID":"weave/default/v4","Address":"10.32.0.9",
            "Options":{"com.docker.network.endpoint.macaddress":"02:42:0a:20:00:09"}}"#,
    ) else {
        panic!("an address is asked for");
    };
    assert_eq!(address.address, Some("10.32.0.9".parse().unwrap()));
    assert_eq!(address.options.mac, "02:42:0a:20:00:09".parse().ok());
    assert!(!address.options.is_gateway());

    let Some(Call::CreateNetwork(network)) = read(
        "NetworkDriver.CreateNetwork",
        r#"{"NetworkID":"b4d1c0ffee","Options":{"com.docker.network.enable_ipv6":false,
            "com.docker.network.generic":{"color":"blue","com.docker.network.driver.mtu":"1400"}},
            "IPv4Data":[{"AddressSpace":"weave","Gateway":"10.32.0.1/12","Pool":"10.32.0.0/12"}],"IPv6Data":null}"#,
    ) else {
        panic!("a network is made");
    };
    assert_eq!(network.network.as_str(), NETWORK);
    assert_eq!(network.options.unknown, ["color"]);
    assert_eq!(network.options.mtu.as_deref(), Some("1400"));
    assert_eq!((network.v4.len(), network.v6.len()), (1, 0));

    let Some(Call::Join(join)) = read(
        "NetworkDriver.Join",
        r#"{"NetworkID":"b4d1c0ffee","EndpointID":"e2d9","SandboxKey":"/var/run/docker/netns/a1","Options":null}"#,
    ) else {
        panic!("a container joins");
    };
    assert_eq!(join.endpoint.endpoint.as_str(), ENDPOINT);
    assert_eq!(join.sandbox, "/var/run/docker/netns/a1");
}

#[test]
fn what_is_absent_null_or_empty_is_the_same() {
    for interface in [
        "",
        r#","Interface":null"#,
        r#","Interface":{}"#,
        r#","Interface":{"Address":"","AddressIPv6":null}"#,
    ] {
        let body = format!(r#"{{"NetworkID":"{NETWORK}","EndpointID":"{ENDPOINT}"{interface}}}"#);
        let Some(Call::CreateEndpoint(made)) = read("NetworkDriver.CreateEndpoint", &body) else {
            panic!("an endpoint is made");
        };
        assert_eq!(made.interface, Interface::default(), "{interface}");
    }
}

#[test]
fn strange_names_and_addresses_are_refused() {
    for (name, body, word) in [
        (
            "NetworkDriver.DeleteNetwork",
            r#"{"NetworkID":"../etc"}"#,
            "CNI id",
        ),
        ("NetworkDriver.DeleteNetwork", "{}", "NetworkID"),
        (
            "IpamDriver.ReleasePool",
            r#"{"PoolID":"weave/a/b/v4"}"#,
            "pool",
        ),
        (
            "IpamDriver.ReleaseAddress",
            r#"{"PoolID":"weave/default/v4","Address":"x"}"#,
            "IP",
        ),
        (
            "NetworkDriver.CreateEndpoint",
            r#"{"NetworkID":"b4d1c0ffee","EndpointID":"e2d9","Interface":{"Address":"10.32.0.9/012"}}"#,
            "IPv4 range without leading zeros",
        ),
        ("NetworkDriver.Join", "{", "EOF"),
    ] {
        refuses(name, body, word);
    }
    assert_eq!(read("NetworkDriver.AllocateNetwork", "{}"), None);
}

#[test]
fn strange_pools_are_refused() {
    for (name, body, word) in [
        (
            "IpamDriver.RequestPool",
            r#"{"Pool":"10.0.0.0"}"#,
            "\"10.0.0.0\" is not a range",
        ),
        (
            "IpamDriver.RequestPool",
            r#"{"Pool":"010.32.0.0/12"}"#,
            "without leading zeros",
        ),
        (
            "IpamDriver.RequestPool",
            r#"{"Pool":"10.32.0.0/12","SubPool":"10.32.1.0/024"}"#,
            "\"10.32.1.0/024\" is not a range",
        ),
        (
            "IpamDriver.RequestPool",
            r#"{"Pool":"10.32.0.0/12","V6":true}"#,
            "other family, 10.32.0.0/12",
        ),
        (
            "IpamDriver.RequestPool",
            r#"{"Pool":"fd00:1:2::/48"}"#,
            "other family, fd00:1:2::/48",
        ),
        (
            "IpamDriver.RequestPool",
            r#"{"Pool":"10.32.0.0/12","SubPool":"10.64.0.0/24"}"#,
            "10.64.0.0/24 is not a part of 10.32.0.0/12",
        ),
        (
            "IpamDriver.RequestPool",
            r#"{"SubPool":"10.32.1.0/24"}"#,
            "10.32.1.0/24, is asked for without the range",
        ),
        (
            "NetworkDriver.CreateNetwork",
            r#"{"NetworkID":"b4d1c0ffee","IPv4Data":[{"AddressSpace":"weave","Pool":"10.32.0.00/12"}]}"#,
            "without leading zeros",
        ),
        (
            "NetworkDriver.CreateNetwork",
            r#"{"NetworkID":"b4d1c0ffee","IPv4Data":[{"AddressSpace":"weave","Pool":""}]}"#,
            "a pool is empty",
        ),
    ] {
        refuses(name, body, word);
    }
}

fn refuses(name: &str, body: &str, word: &str) {
    let said = fails(name, body);
    assert!(said.contains(word), "{name} {body}: {said}");
}

#[test]
fn pools_are_written_as_they_are_read() {
    for text in ["weave/default/v4", "weave/blue-2/v6"] {
        assert_eq!(text.parse::<PoolId>().unwrap().to_string(), text);
    }
    for bad in ["", "weave", "weave/v4", "other/default/v4", "weave//v4"] {
        assert!(bad.parse::<PoolId>().is_err(), "{bad}");
    }
}
