//! The real thing: Debian's containerd and `ctr run --cni` on two hosts, with the plugin as `weavectl cni install`
//! leaves it, and an image made of one static program.
//!
//! `ctr` looks for plugins and configurations at fixed places, so each call of it has mounts of its own there.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Runtime, plugin};
use crate::lab::node::{Said, said};
use crate::lab::ns::{self, Ns, assert_same};
use crate::lab::traffic::{Conversation, datagrams, ping, wait_for};
use crate::lab::{Container, Host, Lab, await_mesh};

/// How long containerd may take for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// How long a conversation may stand still that nothing has to disturb, and one whose node was away.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(2);
pub(crate) const BACK: Duration = Duration::from_secs(10);

/// How long the node may take to see that a container is gone that nobody gave back.
pub(crate) const SWEPT: Duration = Duration::from_secs(30);

pub(super) const IMAGE: &str = "weave.test/guest:1";

/// containerd on one host.
pub(super) struct Containerd<'a> {
    pub(super) host: &'a Host,
    pub(super) dir: PathBuf,
    daemon: Child,
}

impl<'a> Containerd<'a> {
    /// Where it has everything.
    pub(super) fn folder(host: &Host, lab: &Path) -> PathBuf {
        lab.join(format!("{}.containerd", host.name))
    }

    /// Starts it with everything in one folder, installs the plugin for it and imports the image.
    fn start(host: &'a Host, lab: &Path, image: &Path) -> Self {
        let more = "disabled_plugins = ['io.containerd.grpc.v1.cri']\n";
        let containerd = Self::start_with(host, lab, more);
        containerd.import("default", image);
        containerd
    }

    /// Starts it with more configuration, and installs the plugin for it.
    pub(super) fn start_with(host: &'a Host, lab: &Path, more: &str) -> Self {
        let dir = Self::folder(host, lab);
        // What it mounts in there, pods' namespaces say, goes with this one.
        ns::host(&format!(
            "mkdir {0}; mount -t tmpfs none {0}",
            dir.display()
        ));
        let at = |name: &str| dir.join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = '{}'\nstate = '{}'\n{more}\
             [grpc]\naddress = '{}'\n",
            at("root"),
            at("state"),
            at("sock")
        );
        std::fs::write(dir.join("config.toml"), config).expect("the lab's directory is there");
        let plugin = plugin().display().to_string();
        host.ok(&[
            "cni",
            "install",
            "--plugin",
            &plugin,
            "--bin-dir",
            &at("bin"),
            "--conf-dir",
            &at("net.d"),
        ]);
        let daemon = daemon(host, &dir);
        let containerd = Self { host, dir, daemon };
        containerd.answers();
        containerd
    }

    fn answers(&self) {
        wait_for("containerd answers", PATIENCE, || {
            self.try_ctr("version").code == 0
        });
    }

    /// Sends the daemon a signal and waits until it is gone; its containers run on.
    pub(super) fn end(&mut self, signal: &str) {
        ns::host(&format!("kill -{signal} {}", self.daemon.id()));
        self.daemon.wait().expect("containerd ends");
    }

    /// Starts the daemon again.
    pub(super) fn start_again(&mut self) {
        self.daemon = daemon(self.host, &self.dir);
        self.answers();
    }

    /// Imports the image into one of containerd's namespaces.
    pub(super) fn import(&self, namespace: &str, image: &Path) {
        self.ctr(&format!(
            "--namespace {namespace} image import --snapshotter native {}",
            image.display()
        ));
    }

    /// `ctr` with these words, in the host's network, with the installed plugin where it looks.
    fn command(&self, words: &str) -> Command {
        let mut command = self.host.ns.command("unshare");
        let script = "for place in /etc /opt /var/lib; do mount -t tmpfs none $place; done
            mkdir -p /etc/cni /opt/cni; cp -r $0/net.d /etc/cni/; cp -r $0/bin /opt/cni/
            exec ctr --address $0/sock \"$@\"";
        command
            .args(["--mount", "sh", "-ec", script])
            .arg(&self.dir);
        command.args(words.split(' '));
        command
    }

    pub(super) fn try_ctr(&self, words: &str) -> Said {
        said(&mut self.command(words))
    }

    #[track_caller]
    pub(super) fn ctr(&self, words: &str) -> String {
        let said = self.try_ctr(words);
        assert_eq!(said.code, 0, "ctr {words}: {said:?}");
        said.out
    }

    /// Starts a container whose `ctr` waits for its end, and waits until it is on the network.
    pub(super) fn run(&self, name: &str) -> (Child, Container) {
        let words = format!("run --rm --cni --snapshotter native {IMAGE} {name}");
        let child = self
            .command(&words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ctr starts");
        (child, self.attached(name))
    }

    /// Starts a container in the background.
    fn run_detached(&self, name: &str) -> Container {
        let words = format!("run --detach --cni --snapshotter native {IMAGE} {name}");
        self.ctr(&words);
        self.attached(name)
    }

    /// Kills a container in the background and removes it, which calls no plugin.
    fn remove(&self, one: &Container) {
        let name = &one.name;
        self.ctr(&format!("task kill --signal SIGKILL {name}"));
        wait_for("the task ends", PATIENCE, || {
            self.try_ctr(&format!("task delete {name}")).code == 0
        });
        self.ctr(&format!("container delete {name}"));
        ns::host(&format!("ip netns del {}", one.ns.name()));
    }

    /// The container of this name, once it runs and is attached.
    fn attached(&self, name: &str) -> Container {
        let mut found = None;
        wait_for(&format!("{name} is attached"), PATIENCE, || {
            let tasks = self.try_ctr("task list").out;
            let pid = tasks.lines().find_map(|line| {
                let mut words = line.split_whitespace();
                (words.next() == Some(name)).then(|| words.next().map(str::to_owned))?
            });
            let listed = self.host.json(&["ps"])["attachments"].clone();
            let one =
                listed.as_array().into_iter().flatten().find(|one| {
                    one["owner"]["container"].as_str() == Some(&format!("default-{name}"))
                });
            found = pid.zip(one.cloned());
            found.is_some()
        });
        let (pid, one) = found.expect("it was just there");
        let ns = Ns::named(&format!("{}-{name}", self.host.name));
        ns::host(&format!("ip netns attach {} {pid}", ns.name()));
        Container::listed(&one, name, ns)
    }

    /// Kills a container and waits until its `ctr` has ended well.
    pub(super) fn kill(&self, name: &str, ctr: Child) {
        self.ctr(&format!("task kill --signal SIGKILL {name}"));
        let ended = ctr.wait_with_output().expect("ctr ends");
        let err = String::from_utf8_lossy(&ended.stderr);
        // The exit code is that of the container: 128 and the signal.
        assert_eq!(ended.status.code(), Some(137), "{err}");
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if self.daemon.kill().is_ok() {
            let _ = self.daemon.wait();
        }
        // What still runs goes with the lab's namespaces.
        ns::try_host(&format!("umount -R -l {}", self.dir.display()));
    }
}

fn daemon(host: &Host, dir: &Path) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .expect("the lab's directory is there");
    let mut command = host.ns.command("containerd");
    command.arg("-c").arg(dir.join("config.toml"));
    command
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("containerd starts")
}

/// Builds the image of the labs' program and returns its file.
pub(crate) fn image(lab: &Lab) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/labs/guest");
    let [script, guest] = ["image.sh", "guest.rs"].map(|name| source.join(name));
    let folder = lab.dir().join("image");
    let [script, guest, into] = [&script, &guest, &folder].map(|path| path.display());
    ns::host(&format!("{script} {into} {guest}"));
    folder.join("image.tar")
}

/// Containers run, talk to those of the other host, are killed and removed: with the node there, with the node down,
/// and without containerd ever asking.
#[test]
fn containers_of_containerd() {
    Lab::run(|lab| {
        let image = image(lab);
        let [h1, h2] = lab.cluster();
        let [c1, c2] = [&h1, &h2].map(|host| Containerd::start(host, lab.dir(), &image));
        let [r1, r2] = [&h1, &h2].map(Runtime::new);

        let (ctr_a, a) = c1.run("a");
        let (ctr_b, b) = c2.run("b");
        for (from, to) in [(&a, &b), (&b, &a)] {
            from.reaches(to, 1400);
        }
        datagrams((&a.ns, a.v4.into()), (&b.ns, b.v4.into()), 512);

        c1.kill("a", ctr_a);
        assert_eq!(r1.left(), (0, 0, 0), "containerd's DEL has no namespace");
        let (ctr_a, again) = c1.run("a2");
        again.reaches(&b, 56);
        ping(&b.ns, again.v4.into(), 56);

        h2.end("KILL");
        c2.kill("b", ctr_b);
        h2.start();
        assert_eq!(r2.left(), (0, 0, 0), "DEL came while the node was down");

        // A container that is removed in the background is never given back.
        let lost = c1.run_detached("c");
        assert_eq!(r1.left(), (2, 2, 2));
        c1.remove(&lost);
        let kept = r1.gc(&["default-a2"]);
        assert!(kept.ok, "{kept:?}");
        assert_eq!(r1.left(), (1, 1, 1));
        ping(&again.ns, "10.32.0.1".parse().expect("the gateway"), 56);
        c1.kill("a2", ctr_a);
        assert_eq!(r1.left(), (0, 0, 0));
    });
}

/// What a container says across hosts goes on while containerd, the node or both are stopped or killed, and started
/// again; afterwards containers come and go as before, and nothing of them is left.
#[test]
fn containers_outlive_containerd_and_the_node() {
    Lab::run(|lab| {
        let image = image(lab);
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [mut c1, c2] = [h1, h2].map(|host| Containerd::start(host, lab.dir(), &image));
        let [r1, r2] = [h1, h2].map(Runtime::new);
        let before = hosts.each_ref().map(|host| host.ns.snapshot());
        let (a, b) = (c1.run_detached("a"), c2.run_detached("b"));
        let talk = Conversation::start(&a.ns, (&b.ns, b.v4.into()));
        talk.assert_goes_on(AT_ONCE);

        for signal in ["TERM", "KILL"] {
            c1.end(signal);
            talk.assert_goes_on(AT_ONCE);
            c1.start_again();
            talk.assert_goes_on(AT_ONCE);
            let tasks = c1.ctr("task list");
            assert!(tasks.contains("RUNNING"), "after {signal}: {tasks}");

            h1.end(signal);
            c1.end(signal);
            c1.start_again();
            h1.start();
            await_mesh(&hosts);
            talk.assert_goes_on(BACK);
            assert_eq!(r1.left(), (1, 1, 1), "after {signal}");
            let (ctr, new) = c1.run(&format!("new-{signal}"));
            new.reaches(&b, 1400);
            b.reaches(&new, 1400);
            c1.kill(&new.name, ctr);
            ns::host(&format!("ip netns del {}", new.ns.name()));
        }
        talk.finish();

        c1.remove(&a);
        c2.remove(&b);
        for runtime in [&r1, &r2] {
            wait_for("nothing is left", SWEPT, || runtime.left() == (0, 0, 0));
        }
        for (host, before) in hosts.iter().zip(&before) {
            assert_same(before, &host.ns.snapshot(), &host.name);
        }
    });
}
