//! Beside the reference plugins: in front of `portmap`, behind `bridge`, and with `host-local` choosing addresses.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;

use super::{Added, Runtime};
use crate::lab::ns::Ns;
use crate::lab::{Host, Lab};

/// The address of a host outside the cluster.
const OUTSIDE: &str = "192.168.77.254";

fn one_host(lab: &Lab) -> Host {
    let h1 = lab.host("h1", 1);
    h1.start();
    h1.ok(&["init"]);
    h1
}

/// Says a word over TCP from a namespace to `target` and returns who the listener saw, if it was heard.
pub(crate) fn word(from: &Ns, target: SocketAddr, listener: &TcpListener) -> Option<IpAddr> {
    let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(2));
    let mut client = from.inside(connect).ok()?;
    client.write_all(b"word").expect("it can be said");
    let (mut server, seen) = listener.accept().expect("a connection comes");
    let mut heard = [0; 4];
    server.read_exact(&mut heard).expect("it is heard");
    assert_eq!(&heard, b"word");
    Some(seen.ip())
}

/// A port that `portmap` publishes leads to our container from outside the cluster, which it sees as it is, and from
/// another container; taken off, it does not.
#[test]
fn the_portmap_plugin_works_behind_ours() {
    Lab::run(|lab| {
        let h1 = one_host(lab);
        let outside = Ns::add("outside");
        lab.plug(&outside, "u0", 254);
        lab.allow_outside(OUTSIDE.parse::<IpAddr>().expect("an address"));
        let first = Runtime::new(&h1).with("cniVersion", "1.0.0");
        let [web, other] = ["web", "other"].map(|name| first.add(name, &h1.bare_container(name)));

        let mapping =
            json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        let config = json!({
            "cniVersion": "1.0.0", "name": "weave", "type": "portmap", "runtimeConfig": mapping,
            "prevResult": web.result,
        });
        let portmap = Runtime::reference(&h1, "portmap", config);
        let mapped = portmap.add("web", &web.ns);
        assert_eq!(mapped.result["ips"], web.result["ips"]);
        let listener = web.ns.inside(|| TcpListener::bind(("0.0.0.0", 80)));
        let listener = listener.expect("the container can listen");
        let target = SocketAddr::new(h1.v4.into(), 8080);
        assert_eq!(word(&outside, target, &listener), OUTSIDE.parse().ok());
        assert!(word(&other.ns, target, &listener).is_some());
        let checked = first.check("web", &mapped);
        assert!(checked.ok, "{checked:?}");

        portmap.del("web", &web.ns);
        assert_eq!(word(&outside, target, &listener), None);
        first.del("web", &web.ns);
        first.del("other", &other.ns);
        assert_eq!(first.left(), (0, 0, 0));
    });
}

#[test]
fn ours_works_behind_other_plugins() {
    Lab::run(behind_others);
}

/// Behind `bridge`, `ptp` and `macvlan` their result goes on unchanged, and their container is not touched. (`ipvlan`
/// makes an interface as `macvlan` does, of a kind that fewer kernels have.)
pub(super) fn behind_others(lab: &Lab) {
    let h1 = one_host(lab);
    h1.ns
        .sh("ip link add name lower type bridge; ip link set lower up");
    for (plugin, more) in [
        ("bridge", json!({"bridge": "mixed0", "isGateway": true})),
        ("ptp", json!({})),
        ("macvlan", json!({"master": "lower"})),
    ] {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "mixed", "type": plugin,
            "ipam": {
                "type": "host-local", "subnet": "198.51.100.0/24", "dataDir": lab.dir().join("host-local"),
            },
        });
        for (key, value) in more.as_object().expect("fields") {
            config[key] = value.clone();
        }
        let other = Runtime::reference(&h1, plugin, config);
        let ns = h1.bare_container(plugin);
        let first = other.add("c", &ns);
        let before = ns.snapshot();
        let ours = Runtime::new(&h1)
            .with("cniVersion", "1.0.0")
            .with("name", "mixed");
        let second = ours.with("prevResult", first.result.clone()).add("c", &ns);
        assert_eq!(second.result, first.result, "behind {plugin}");
        let checked = ours.check("c", &second);
        assert!(checked.ok, "behind {plugin}: {checked:?}");
        let checked = other.check("c", &second);
        assert!(checked.ok, "{plugin}: {checked:?}");
        ours.with("prevResult", second.result).del("c", &ns);
        assert_eq!(ns.snapshot(), before, "what {plugin} made is as it was");
        assert_eq!(ours.left(), (0, 0, 0));
        other.del("c", &ns);
    }
}

/// `host-local` chooses from a part of this node's addresses; when it has lost an address CHECK sees it, and its GC or
/// DEL takes it back.
#[test]
fn an_address_that_host_local_chose_is_used() {
    Lab::run(|lab| {
        let h1 = one_host(lab);
        let data = lab.dir().join("host-local");
        let ipam = json!({"type": "host-local", "subnet": "10.32.4.0/24", "rangeStart": "10.32.4.10", "dataDir": data});
        let runtime = Runtime::new(&h1)
            .with("cniVersion", "1.0.0")
            .with("ipam", ipam);
        let runtime = runtime.var("CNI_PATH", super::REFERENCE);
        let kept = data.join("weave/10.32.4.10");
        let ns = h1.bare_container("c");
        let add = || -> Added {
            let added = runtime.add("c", &ns);
            assert_eq!(
                added.ips()[0],
                "10.32.4.10".parse::<IpAddr>().expect("an address")
            );
            assert!(kept.exists());
            added
        };
        let added = add();
        let checked = runtime.check("c", &added);
        assert!(checked.ok, "{checked:?}");
        std::fs::remove_file(&kept).expect("the address is written down");
        assert!(!runtime.check("c", &added).ok, "the address is lost");
        runtime.del("c", &ns);
        std::fs::remove_dir_all(&data).expect("it is there");
        add();
        runtime.del("c", &ns);
        assert!(!kept.exists());
        assert_eq!(runtime.left(), (0, 0, 0));
    });
}
