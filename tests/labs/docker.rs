//! The real thing: Debian's `dockerd` on two hosts, with the node as its plugin for networks and addresses.
//!
//! Docker looks for plugins at a fixed place, so each `dockerd` has a `/run` of its own. What it mounts elsewhere, such
//! as its containers' namespaces, is seen by its containerd and by the node as on any machine.

mod outlived;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cni::image;
use crate::lab::node::{Said, said};
use crate::lab::ns::{self, Ns};
use crate::lab::traffic::{datagrams, ping, try_ping, wait_for};
use crate::lab::{Container, Host, Lab, await_mesh, form};

/// How long Docker may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server outside of the cluster.
const OUTSIDE: &str = "192.168.77.254";

/// Docker on one host, with all it writes in one folder.
struct Docker<'a> {
    host: &'a Host,
    dir: PathBuf,
    /// Flags of `dockerd` beside those that every lab has.
    flags: &'static [&'static str],
    containerd: Child,
    dockerd: Child,
}

impl<'a> Docker<'a> {
    /// Starts the node as a plugin, and Docker, and imports the image of the labs' program.
    fn start(host: &'a Host, lab: &Path, image: &Path) -> Self {
        Self::start_with(host, lab, image, &[])
    }

    /// The same with flags of `dockerd`.
    fn start_with(
        host: &'a Host,
        lab: &Path,
        image: &Path,
        flags: &'static [&'static str],
    ) -> Self {
        let dir = lab.join(format!("{}.docker", host.name));
        let at = |name: &str| dir.join(name).display().to_string();
        ns::host(&format!(
            "mkdir -p {0}; mount -t tmpfs none {0}; mount --make-shared {0}; mkdir {0}/plugins",
            dir.display()
        ));
        start_node(host, &dir);
        let config = format!(
            "version = 2\nroot = '{}'\nstate = '{}'\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n\
             [grpc]\naddress = '{}'\n",
            at("containerd"),
            at("containerd-run"),
            at("containerd.sock")
        );
        std::fs::write(dir.join("containerd.toml"), config).expect("the folder is there");
        let containerd = host
            .ns
            .command("containerd")
            .args(["-c", &at("containerd.toml")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("containerd starts");
        let mut docker = Self {
            host,
            containerd,
            dockerd: dockerd(host, &dir, flags),
            flags,
            dir,
        };
        docker.answers();
        docker.ok(&format!(
            "import {} guest",
            image.with_file_name("root.tar").display()
        ));
        docker
    }

    fn answers(&mut self) {
        wait_for("dockerd answers", PATIENCE, || {
            let ended = self.dockerd.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "dockerd ended: {ended:?}\n{}", self.log());
            self.run("version").code == 0
        });
    }

    /// Sends `dockerd` a signal and waits until it is gone.
    fn end(&mut self, signal: &str) {
        ns::host(&format!("kill -{signal} {}", self.dockerd.id()));
        self.dockerd.wait().expect("dockerd ends");
        let _ = std::fs::remove_file(self.dir.join("pid"));
    }

    /// Starts `dockerd` again.
    fn start_again(&mut self) {
        self.dockerd = dockerd(self.host, &self.dir, self.flags);
        self.answers();
    }

    fn log(&self) -> String {
        let log = std::fs::read(self.dir.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(6000)..]).into_owned()
    }

    fn command(&self) -> Command {
        let mut command = self.host.ns.command("timeout");
        let socket = format!("unix://{}/sock", self.dir.display());
        command.args([
            &PATIENCE.as_secs().to_string(),
            "/usr/bin/docker",
            "-H",
            &socket,
        ]);
        command
    }

    /// `docker` with these words.
    fn run(&self, words: &str) -> Said {
        said(self.command().args(words.split(' ')))
    }

    /// The same, which must succeed.
    #[track_caller]
    fn ok(&self, words: &str) -> String {
        let said = self.run(words);
        assert_eq!(said.code, 0, "docker {words}: {said:?}\n{}", self.log());
        said.out.trim().to_owned()
    }

    /// Starts a container on the network.
    #[track_caller]
    fn start_container(&self, name: &str, more: &str) -> Container {
        self.ok(&format!(
            "run --detach --network weave{more} --name {name} guest /guest"
        ));
        self.container(name)
    }

    /// A running container as Docker knows it.
    #[track_caller]
    fn container(&self, name: &str) -> Container {
        let asked = "{{.State.Pid}} {{(index .NetworkSettings.Networks \"weave\").IPAddress}} \
                     {{(index .NetworkSettings.Networks \"weave\").GlobalIPv6Address}}";
        let told = said(self.command().args(["inspect", "--format", asked, name]));
        let words: Vec<&str> = told.out.split_whitespace().collect();
        let [pid, v4, v6] = words[..] else {
            panic!("a container on the network has two addresses: {told:?}");
        };
        let ns = Ns::named(&format!("{}-{name}", self.host.name));
        ns::host(&format!(
            "ip netns del {0} 2>/dev/null || true; ip netns attach {0} {pid}",
            ns.name()
        ));
        let [v4, v6] = [v4, v6].map(|text| text.parse::<IpAddr>().expect("an address"));
        match (v4, v6) {
            (IpAddr::V4(v4), IpAddr::V6(v6)) => Container {
                name: name.to_owned(),
                ns,
                v4,
                v6,
            },
            other => panic!("not one address of each family: {other:?}"),
        }
    }

    /// How many devices of containers there are, how many addresses are given and how many attachments are known.
    fn left(&self) -> (usize, u64, usize) {
        let links = self.host.ns.sh("ip -br link");
        let ours = |line: &&str| line.starts_with("wv") || line.starts_with("wc");
        let used = self.host.status()["cluster"]["addresses_used"].as_u64();
        let known = self.host.json(&["ps"])["attachments"]
            .as_array()
            .map(Vec::len);
        (
            links.lines().filter(ours).count(),
            used.expect("a number"),
            known.expect("a list"),
        )
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        for daemon in [&mut self.dockerd, &mut self.containerd] {
            if daemon.kill().is_ok() {
                let _ = daemon.wait();
            }
        }
        // What still runs goes with the lab's namespaces.
        ns::try_host(&format!("umount -R -l {}", self.dir.display()));
    }
}

/// Starts a node that serves the `dockerd` of a folder.
fn start_node(host: &Host, dir: &Path) {
    let flag = format!("--docker-plugin={}/plugins/weave.sock", dir.display());
    let api = format!("--docker-api={}/sock", dir.display());
    host.start_with(&[&flag, &api]);
}

fn dockerd(host: &Host, dir: &Path, flags: &[&str]) -> Child {
    let script = "mount -t tmpfs none /run; mkdir -p /run/docker/plugins
        mount --bind $0/plugins /run/docker/plugins
        exec /usr/sbin/dockerd --data-root $0/data --exec-root $0/exec --pidfile $0/pid --host unix://$0/sock \
            --containerd $0/containerd.sock --storage-driver vfs --bridge none \"$@\"";
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .expect("the folder is there");
    let mut command = host.ns.command("unshare");
    command.args(["--mount", "--propagation", "unchanged", "sh", "-ec", script]);
    command
        .arg(dir)
        .args(flags)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("dockerd starts")
}

/// What a container of this host's Docker says to whoever connects to its port 80.
fn serve(container: &Container) -> std::thread::JoinHandle<()> {
    let listener = container.ns.inside(|| TcpListener::bind("0.0.0.0:80"));
    let listener = listener.expect("a container can listen");
    std::thread::spawn(move || {
        let (mut caller, _) = listener.accept().expect("somebody connects");
        caller.write_all(b"hello").expect("the answer leaves");
    })
}

/// Containers of two hosts reach each other and the outside; ports are published; all of it outlives the node and
/// Docker being killed, and leaves nothing.
#[test]
fn containers_of_docker() {
    Lab::run(|lab| {
        let image = image(lab);
        let hosts = [lab.host("h1", 1), lab.host("h2", 2)];
        let internet = Ns::add("internet");
        lab.plug(&internet, "u0", 254);
        lab.allow_outside(OUTSIDE.parse::<IpAddr>().expect("an address"));
        let root = image.with_file_name("root");
        ns::host(&format!("tar -C {0} -cf {0}.tar guest", root.display()));
        let [h1, h2] = &hosts;
        let mut d1 = Docker::start(h1, lab.dir(), &image);
        let refused = d1.run("network create --driver weave --ipam-driver weave weave");
        assert!(refused.err.contains("weavectl init"), "{refused:?}");
        let d2 = Docker::start(h2, lab.dir(), &image);
        form(&hosts);

        create_networks(&[&d1, &d2]);
        let (a, b) = (
            d1.start_container("one", " --restart always"),
            d2.start_container("two", ""),
        );
        for (from, to) in [(&a, &b), (&b, &a)] {
            wait_for("Docker's own rules let it pass", PATIENCE, || {
                try_ping(&from.ns, to.v4.into(), 56).status.success()
            });
            from.reaches(to, 1400);
        }
        datagrams((&a.ns, a.v4.into()), (&b.ns, b.v4.into()), 512);
        for host in &hosts {
            let policy = host.ns.sh("iptables -S FORWARD");
            assert!(
                policy.contains("-P FORWARD DROP"),
                "as Docker sets it: {policy}"
            );
        }
        flows_name_them(h1, "one", "two");
        is_told_with_its_image(&d2, h1);
        publishes(&d1, &internet);
        has_what_it_asks_for(&d2, &a);
        for (name, flag) in [("blue", None), ("inside", Some("--internal"))] {
            a_network_of_its_own(&d2, &b, name, flag);
        }
        the_node_is_killed(&d1, &hosts, &b);
        docker_is_started_again(&mut d1, &b);
        d2.ok("restart --time 0 two");
        d1.container("one").reaches(&d2.container("two"), 56);
        for (docker, name) in [(&d1, "one"), (&d2, "two")] {
            docker.ok(&format!("rm --force {name}"));
            docker.ok("network rm weave");
            assert_eq!(docker.left(), (0, 0, 0), "{}", docker.log());
        }
    });
}

/// A container has the address and the MAC that were asked for.
fn has_what_it_asks_for(docker: &Docker<'_>, other: &Container) {
    let wanted = docker.start_container(
        "wanted",
        " --ip 10.47.252.77 --mac-address 02:42:0a:00:00:07",
    );
    assert_eq!(wanted.v4.to_string(), "10.47.252.77");
    let link = wanted.ns.sh("ip link show eth0");
    assert!(link.contains("02:42:0a:00:00:07"), "{link}");
    wanted.reaches(other, 56);
    docker.ok("rm --force wanted");
}

/// Makes the network on each host, and is refused what cannot be had.
fn create_networks(dockers: &[&Docker<'_>]) {
    let status = dockers[0].host.status();
    let range6 = status["cluster"]["range6"].as_str().expect("a range");
    // Docker takes a wish for an address only where the range was named.
    for (docker, range) in dockers.iter().zip(["", " --subnet 10.32.0.0/12"]) {
        let create = "network create --driver weave --ipam-driver weave";
        for (more, word) in [
            ("--subnet 10.99.0.0/16", "leave --subnet out"),
            ("--opt color=blue", "color"),
            ("--ipam-opt color=blue", "color"),
            ("--opt com.docker.network.driver.mtu=100", "1280"),
        ] {
            let said = docker.run(&format!("{create} {more} other"));
            assert!(
                said.code != 0 && said.err.contains(word),
                "{more}: {said:?}"
            );
        }
        let said = docker.run("network create --driver weave --subnet 10.99.0.0/16 other");
        assert!(
            said.code != 0 && said.err.contains("--ipam-driver weave"),
            "{said:?}"
        );
        docker.ok(&format!("{create} --ipv6 --subnet {range6}{range} weave"));
    }
}

/// Flows have the names that people gave Docker, and are found by these and by those of the attachments.
fn flows_name_them(asked: &Host, from: &str, to: &str) {
    let row = |filter: &[&str]| {
        let said = asked.ok(&[&["flows"], filter].concat());
        let names = |line: &str| {
            let mut words = line.split_whitespace();
            words.next() == Some(from) && words.next() == Some(to)
        };
        said.lines().any(names)
    };
    wait_for("flows have Docker's names", PATIENCE, || {
        row(&["--from", from, "--to", to])
    });
    let shown = asked.json(&["flows", "--from", from, "--to", to]);
    let id = shown["flows"][0]["from"]["id"].as_str().expect("an id");
    let attached = id.split('/').nth(1).expect("the attachment's name");
    assert!(attached.starts_with("docker-"), "{id}");
    assert!(row(&["--from", attached, "--with", to]), "{attached}");
}

/// What Docker says of its container is told on another node, with what runs in it.
fn is_told_with_its_image(docker: &Docker<'_>, asked: &Host) {
    wait_for("Docker's name and image are told", PATIENCE, || {
        let told = asked.json(&["processes", "two"]);
        let told = &told["places"][0];
        told["image"] == "guest"
            && told["host"] == docker.host.name.as_str()
            && told["processes"][0]["name"] == "guest"
    });
}

/// A Docker network with the range of a network of the cluster is that network: its containers reach no other, and the
/// outside unless it is internal.
fn a_network_of_its_own(docker: &Docker<'_>, other: &Container, name: &str, flag: Option<&str>) {
    let mut create = vec!["network", "create", name];
    create.extend(flag);
    let made = docker.host.json(&create);
    let range = made["range"].as_str().expect("a range");
    let create = "network create --driver weave --ipam-driver weave";
    docker.ok(&format!("{create} --subnet {range} {name}"));
    docker.ok(&format!(
        "run --detach --network {name} --name apart guest /guest"
    ));
    let asked = format!("{{{{.State.Pid}}}} {{{{.NetworkSettings.Networks.{name}.IPAddress}}}}");
    let told = docker
        .command()
        .args(["inspect", "--format", &asked, "apart"])
        .output();
    let told = String::from_utf8(told.expect("docker is installed").stdout).expect("text");
    let (pid, ip) = told
        .trim()
        .split_once(' ')
        .expect("a process and an address");
    let net: ipnet::Ipv4Net = range.parse().expect("a range");
    assert!(
        net.contains(&ip.parse::<std::net::Ipv4Addr>().expect("an address")),
        "{ip} in {range}"
    );
    let ns = Ns::named(name);
    ns::host(&format!("ip netns attach {} {pid}", ns.name()));
    let second = format!("{name}-second");
    let second = docker.host.attach_with(&second, &["--network", name]);
    ping(&ns, second.v4.into(), 56);
    assert!(!try_ping(&ns, other.v4.into(), 56).status.success());
    let outside = OUTSIDE.parse().expect("an address");
    assert_eq!(
        try_ping(&ns, outside, 56).status.success(),
        flag.is_none(),
        "the outside from {name}"
    );
    let said = docker.host.ctl(&["network", "rm", name]);
    assert!(said.err.contains("is in use"), "{said:?}");
    docker.ok("rm --force apart");
    docker.host.ok(&["detach", &second.name]);
    let said = docker.host.ctl(&["network", "rm", name]);
    assert!(said.err.contains("docker network rm"), "{said:?}");
    docker.ok(&format!("network rm {name}"));
    docker.host.ok(&["network", "rm", name]);
}

/// A published port is reached from outside, is shown, and the container reaches the outside.
fn publishes(docker: &Docker<'_>, internet: &Ns) {
    let web = docker.start_container("web", " --publish 8080:80");
    ping(&web.ns, OUTSIDE.parse().expect("an address"), 56);
    assert!(docker.ok("port web").contains("8080"));
    let own = SocketAddr::new(docker.host.v4.into(), 0);
    docker.host.assert_deaf_to(&web.ns, &[own]);
    let server = serve(&web);
    let port = SocketAddr::new(docker.host.v4.into(), 8080);
    let mut heard = String::new();
    internet.inside(|| {
        let mut stream =
            TcpStream::connect_timeout(&port, Duration::from_secs(10)).expect("the port is open");
        stream
            .read_to_string(&mut heard)
            .expect("the answer arrives");
    });
    server.join().expect("the server answers");
    assert_eq!(heard, "hello");
    docker.ok("rm --force web");
}

/// The node is killed and started while Docker runs: what was there goes on, and Docker can do all as before.
fn the_node_is_killed(docker: &Docker<'_>, hosts: &[Host], other: &Container) {
    let before = docker.host.json(&["ps"])["attachments"].clone();
    docker.host.end("KILL");
    start_node(docker.host, &docker.dir);
    await_mesh(hosts);
    assert_eq!(docker.host.json(&["ps"])["attachments"], before);
    let new = docker.start_container("new", "");
    new.reaches(other, 56);
    docker.container("one").reaches(other, 56);
    // What Docker has lost is taken off by hand, and what Docker says of it later does no harm.
    let all = docker.host.json(&["ps"])["attachments"].clone();
    let ip = format!("{}/12", new.v4);
    let lost = all
        .as_array()
        .into_iter()
        .flatten()
        .find(|one| one["ip"] == ip);
    let lost = lost.and_then(|one| one["name"].as_str());
    docker.host.ok(&["detach", lost.expect("it is attached")]);
    assert_eq!(docker.left(), (1, 1, 1), "{}", docker.log());
    docker.ok("rm --force new");
    docker.ok("restart --time 0 one");
    docker.container("one").reaches(other, 56);
    assert_eq!(docker.left(), (1, 1, 1), "{}", docker.log());
}

/// Docker is stopped, and killed, while a container runs: it comes back, and the first one's address and device do not
/// stay behind.
fn docker_is_started_again(docker: &mut Docker<'_>, other: &Container) {
    for signal in ["TERM", "KILL"] {
        docker.end(signal);
        docker.start_again();
        wait_for("Docker has started its container again", PATIENCE, || {
            docker
                .run("inspect --format {{.State.Running}} one")
                .out
                .trim()
                == "true"
        });
        docker.container("one").reaches(other, 56);
        assert_eq!(docker.left(), (1, 1, 1), "{signal}: {}", docker.log());
    }
}
