"""Two hosts, each with one container, as network namespaces, and the wire between the hosts.

            wvb-hA ──── u0 ═══════ wire ═══════ u0 ──── wvb-hB
              │       10.99.0.1          10.99.0.2        │
            wvb-cA                                      wvb-cB

Nothing outside these namespaces is touched. Everything carries the prefix, so whatever an earlier run left behind
(it was killed) is found and removed at the start of the next.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PREFIX = "wvb-"
UNDERLAY = {"A": "10.99.0.1", "B": "10.99.0.2"}
OTHER = {"A": "B", "B": "A"}
WIRES = {
    "super": "a veth that passes super-packets whole, as a NIC with every offload",
    "packet": "a switch where no packet is larger than the MTU: no offloads",
    "tso": "TCP leaves as super-packets, UDP as single packets, as in most clouds",
}


class Failed(Exception):
    """A command of the bench failed: what it was, and what it said."""


def run(*command, stdin=None, timeout=30):
    """Runs a command to its end and returns its standard output; raises Failed."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f"`{' '.join(words)}` took longer than {timeout} s") from None
    except OSError as error:
        raise Failed(f"`{words[0]}`: {error.strerror}") from None
    if done.returncode != 0:
        raise Failed(f"`{' '.join(words)}`: {(done.stderr or done.stdout).strip() or done.returncode}")
    return done.stdout


def wait_until(ready, seconds, what):
    """Polls `ready` every 50 ms; raises Failed when it is not true after `seconds`."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise Failed(f"{what}: not after {seconds} s")
        time.sleep(0.05)


def take_lock():
    """The file whose lock is ours until we end; exits if another bench runs, or without the rights to run one."""
    if os.geteuid() != 0:
        sys.exit("bench: making network namespaces needs root: run it as root")
    lock = open("/run/weave-bench.lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("bench: another bench is running, and two would spoil each other's figures: wait for it")
    return lock


class Hosts:
    """The hosts A and B, their containers, what runs in them, and one temporary folder for its files."""

    def __init__(self, wire, mtu, loss_permille):
        remove_leftovers()
        self.mtu = mtu
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._running = []
        try:
            for side in "AB":
                for kind in "hc":
                    run("ip", "netns", "add", f"{PREFIX}{kind}{side}")
                    self.inside(f"{kind}{side}", "ip", "link", "set", "lo", "up")
            self._lay_wire(wire, loss_permille)
        except BaseException:
            self.close()
            raise

    def inside(self, place, *command, **options):
        """Runs a command in the namespace of `place` (hA, cA, ...); see `run`."""
        return run("nsenter", f"--net={netns(place)}", "--", *command, **options)

    def start(self, place, *command, env=None):
        """Starts a process in the namespace of `place`; its output goes to the folder's log.

        It has a process group of its own, so Ctrl-C reaches only us, but not a session of its own: the kernel shares
        CPU time between sessions, and an overlay with many threads would count as much as one iperf3.
        """
        with open(self.folder / "log", "ab") as log:
            self._running.append(
                subprocess.Popen(
                    ["nsenter", f"--net={netns(place)}", "--", *map(str, command)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env={**os.environ, **(env or {})}, process_group=0,
                )
            )  # fmt: skip

    def route(self, side, **via):
        """In host `side`: the way to the other side's containers, as `via=ADDRESS` or `dev=NAME`."""
        self.inside(f"h{side}", "ip", "route", "add", container_range(OTHER[side]), *sum(via.items(), ()))

    def plug_containers(self, mtu):
        """A container in each host on a bridge (as container runtimes do), the host its router."""
        for side in "AB":
            gateway, address = container_address(side, 1), container_address(side, 2)
            host, container = f"h{side}", f"c{side}"
            self.inside(host, "ip", "link", "add", "br0", "type", "bridge")
            self.inside(host, "ip", "link", "set", "br0", "mtu", mtu, "up")
            self.inside(host, "ip", "link", "add", "p0", "mtu", mtu, "type", "veth",
                        "peer", "name", "eth0", "netns", PREFIX + container, "mtu", mtu)  # fmt: skip
            self.inside(host, "ip", "link", "set", "p0", "master", "br0", "up")
            self.inside(host, "ip", "addr", "add", f"{gateway}/24", "dev", "br0")
            self.inside(host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            self.inside(container, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
            self.inside(container, "ip", "link", "set", "eth0", "up")
            self.inside(container, "ip", "route", "add", "default", "via", gateway)

    def log_tail(self):
        """The last lines of what the started processes said."""
        log = self.folder / "log"
        return log.read_text(errors="replace").splitlines()[-8:] if log.exists() else []

    def close(self):
        """Ends the processes and removes the namespaces and the folder; goes on past what fails."""
        for process in self._running:
            process.terminate()
        end = time.monotonic() + 2
        for process in self._running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
        remove_leftovers()

    def _lay_wire(self, wire, loss_permille):
        if wire == "packet":
            self._lay_switch(loss_permille)
        else:
            self.inside("hA", "ip", "link", "add", "u0", "mtu", self.mtu, "type", "veth",
                        "peer", "name", "u0", "netns", PREFIX + "hB", "mtu", self.mtu)  # fmt: skip
            if wire == "tso":
                for side in "AB":
                    self.inside(f"h{side}", "ethtool", "-K", "u0", "tx-udp-segmentation", "off", "gro", "on")
        for side in "AB":
            self.inside(f"h{side}", "ip", "addr", "add", f"{UNDERLAY[side]}/24", "dev", "u0")
            self.inside(f"h{side}", "ip", "link", "set", "u0", "up")

    def _lay_switch(self, loss_permille):
        run("ip", "netns", "add", PREFIX + "sw")
        self.inside("sw", "ip", "link", "add", "sw0", "mtu", self.mtu, "type", "bridge")
        self.inside("sw", "ip", "link", "set", "sw0", "up")
        for side in "AB":
            port = f"p{side}"
            self.inside("sw", "ip", "link", "add", port, "mtu", self.mtu, "type", "veth",
                        "peer", "name", "u0", "netns", f"{PREFIX}h{side}", "mtu", self.mtu)  # fmt: skip
            self.inside("sw", "ip", "link", "set", port, "master", "sw0", "up")
            self.inside(f"h{side}", "ethtool", "-K", "u0", "tso", "off", "gso", "off", "tx-udp-segmentation", "off", "gro", "on")
            self.inside("sw", "ethtool", "-K", port, "tso", "off", "gso", "off", "gro", "off")
        if loss_permille:
            drops = "".join(
                f"add rule bridge loss pass ip protocol {protocol} numgen random mod 1000 < {loss_permille} drop\n"
                for protocol in ("udp", "tcp")
            )
            hook = "add chain bridge loss pass { type filter hook forward priority 0; }\n"
            self.inside("sw", "nft", "-f", "-", stdin="add table bridge loss\n" + hook + drops)


def collect(bench, rows, file):
    """Runs a bench of that name whose `rows` come one by one, with no other bench beside it; each is printed as it comes.

    Returns all of them, and writes them to `file` unless it is None. Ends the program where the bench fails or is
    interrupted; what it made is removed in any case.
    """
    lock, done = take_lock(), []
    try:
        for row in rows:
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            done.append(row)
    except Failed as fault:
        sys.exit(f"bench: {fault}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        remove_leftovers()
        os.unlink(lock.name)
    if file:
        file.write_text(json.dumps({"bench": bench, "rows": done}, indent=1) + "\n")
    return done


def netns(place):
    """The path of the namespace of `place` (hA, cB, ...)."""
    return f"/run/netns/{PREFIX}{place}"


def container_range(side):
    """The containers' prefix in host `side`, where the bench and not the overlay chooses it."""
    return f"10.32.{'AB'.index(side) + 1}.0/24"


def container_address(side, number):
    """Address `number` of `container_range`: 1 is the host, 2 the container."""
    return f"10.32.{'AB'.index(side) + 1}.{number}"


def remove_leftovers():
    """Removes every namespace, process, and file of the bench, this run's or one's that was killed."""
    names = sorted(path.name for path in Path("/run/netns").glob(PREFIX + "*"))
    for name in names:
        for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
    for name in names:
        subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)
    for socket in Path("/run/wireguard").glob(PREFIX + "*"):
        socket.unlink(missing_ok=True)
    for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        subprocess.run(["rm", "-rf", "--", str(folder)])
