#!/usr/bin/env -S python3 -B
"""The bench of failures: one of three servers misbehaves, and how many requests fail through each kind of Service.

One host with a running node and five containers: two clients and three servers. Where a node is lost the third server is on a
second host, whose wire is cut; the relay balances by `maglev` there, as it would else prefer the servers of its own host and
never ask that one. haproxy has its own checks (every second, two to change its mind), tries another server when one does not
take a connection, and picks the one with the fewest. Ours have no checks here: what they know of an endpoint they learn from
the clients' own connections.

Both clients ask, each half of the requests: what breaks after a client was heard may be that client's doing, so the relay
leaves an endpoint that served others of late out for it only when clients of two addresses saw it. `--clients 1` has one of
them ask alone, whom nobody else can contradict. Each request is a connection of its own; it failed when it was refused, broke, or had no
answer within two seconds. The bench fails if the server that is to misbehave answered nobody before: its fault would show nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hosts
from hosts import PREFIX, Failed, remove_leftovers, run, wait_until
from services import TARGET, Host

HERE = Path(__file__).resolve().parent
# Where haproxy listens: for the servers of its host, and with the one of the second host among them.
PROXIED, FAR_PROXIED = "10.99.0.13", "10.99.0.14"
NAMES = ["haproxy", "ours-kernel", "ours-relay"]
CLIENTS = ["c", "c2"]
SERVERS = ["b1", "b2", "b3"]
VICTIM = "b3"
# The third server instead of the victim where the whole node of it is lost, and the end of its wire there.
FAR, FAR_WIRE = "b4", "u1"
LOST = "lost"
# What the victim does: how its server behaves, or a rule in its namespace.
FAULTS = {
    "none": "ok",
    "hangs": "hang",
    "resets": "reset",
    "closes": "close",
    "slow": "slow",
    "refuses": "add rule inet fault in tcp dport 8080 reject with tcp reset",
    "silent": "add rule inet fault in drop",
    LOST: "ok",
}
EMPTY = """
add table inet fault
delete table inet fault
add table inet fault
add chain inet fault in { type filter hook input priority 0; }
"""
HAPROXY = """
global
 maxconn 4000
 nbthread 2
defaults
 mode tcp
 retries 3
 option redispatch 1
 timeout connect 500ms
 timeout client 60s
 timeout server 60s
"""
WEBS = """
frontend {name}
 bind {address}:80
 default_backend of-{name}
backend of-{name}
 balance leastconn
 default-server check inter 1s fall 2 rise 2
"""


class Servers(Host):
    """The host with three servers that may be told to misbehave."""

    clients = CLIENTS[:1]

    def __init__(self):
        containers = [*self.clients, *SERVERS]
        self.prepare(containers)
        self.ips = {name: self.attach(name) for name in containers}
        for name in SERVERS:
            self.tell(name, "ok")
            self.start(name, HERE / "answering.py", name, self.folder / f"{name}.mode")
        self.addresses = self.put_in_front()

    def prepare(self, containers):
        remove_leftovers()
        self.folder = Path(run("mktemp", "-d", f"/tmp/{PREFIX}XXXXXX").strip())
        self.running = []
        for name in ("h", *containers):
            run("ip", "netns", "add", PREFIX + name)
            self.inside(name, "ip", "link", "set", "lo", "up")
        self.start("h", TARGET / "weaved", "--name", "h", "--state-dir", self.folder / "state", "--socket", self.folder / "sock")
        wait_until((self.folder / "sock").is_socket, 10, "weaved's socket")
        self.ctl("init")
        wait_until(lambda: self.ctl("status", "-o", "json", check=False), 10, "an answer of weaved")

    def netns(self, place):
        return hosts.netns(place)

    def put_in_front(self):
        self.start_haproxy({PROXIED: SERVERS})
        ours = {f"ours-{engine}": self.service(engine, self.behind()) for engine in ("kernel", "relay")}
        return {"haproxy": PROXIED, **ours}

    def start_haproxy(self, fronts):
        """One haproxy for fronts, {address: servers}."""
        text = HAPROXY
        for number, (address, servers) in enumerate(fronts.items()):
            self.inside("h", "ip", "addr", "replace", f"{address}/32", "dev", "lo")
            text += WEBS.format(name=f"web{number}", address=address)
            text += "".join(f" server {name} {self.ips[name]}:8080\n" for name in servers)
        config = self.folder / "haproxy.conf"
        config.write_text(text)
        self.start("h", "haproxy", "-db", "-f", config)

    def behind(self, servers=SERVERS):
        return [word for name in servers for word in ("--endpoint", f"{self.ips[name]}:8080")]

    def service(self, engine, behind, protocol="tcp", name=None, balance=None):
        name = name or (engine if protocol == "tcp" else f"{engine}-{protocol}")
        words = ["--engine", engine, *(["--balance", balance] if balance else []), *behind]
        said = self.ctl("service", "create", name, "--port", f"80:8080/{protocol}", *words, "-o", "json")
        return json.loads(said)["addresses"][0]

    def tell(self, name, how):
        (self.folder / f"{name}.mode").write_text(how)

    def misbehave(self, fault):
        """The victim does as FAULTS says from now on."""
        does = FAULTS[fault]
        rule = does if does.startswith("add") else ""
        self.inside(VICTIM, "nft", "-f", "-", stdin=EMPTY + rule + "\n")
        self.tell(VICTIM, "ok" if rule else does)

    def talk_to(self, words):
        """Starts a command whose input and output are pipes."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.running.append(subprocess.Popen(list(map(str, words)), **pipes, process_group=0))
        return self.running[-1]

    def ask(self, address, rate, seconds, protocol="tcp", clients=CLIENTS[:1]):
        """What becomes of so many requests a second, which clients share, and how many of them each server answered."""
        words = [HERE / "asking.py", protocol, address, 80, rate / len(clients), seconds]
        with ThreadPoolExecutor() as threads:
            parts = list(threads.map(lambda client: json.loads(self.inside(client, *words, timeout=seconds + 30)), clients))
        ms = sorted(took for part in parts for took in part["took_ms"]) or [0]
        return {
            "asked": sum(part["asked"] for part in parts),
            "failed": dict(sum((Counter(part["failed"]) for part in parts), Counter())),
            "answers": dict(sum((Counter(part["answers"]) for part in parts), Counter())),
            "p50_ms": statistics.median(ms),
            "p99_ms": ms[int(len(ms) * 0.99)],
        }


class AndAFarHost(Servers):
    """Two clients, and a second host beside it, with one container: the third server of Services of their own."""

    clients = CLIENTS

    def put_in_front(self):
        self.add_host()
        # So that haproxy, which is in the host's network, reaches the other host's container.
        self.ctl("expose")
        servers = [*SERVERS[:2], FAR]
        self.start_haproxy({PROXIED: SERVERS, FAR_PROXIED: servers})
        ours = {f"ours-{engine}": self.service(engine, self.behind()) for engine in ("kernel", "relay")}
        far = lambda engine, **how: self.service(engine, self.behind(servers), name=f"far-{engine}", **how)  # noqa: E731
        self.far_addresses = {"haproxy": FAR_PROXIED, "ours-kernel": far("kernel"), "ours-relay": far("relay", balance="maglev")}
        return {"haproxy": PROXIED, **ours}

    def add_host(self):
        for name in ("f", FAR):
            run("ip", "netns", "add", PREFIX + name)
            self.inside(name, "ip", "link", "set", "lo", "up")
        self.inside("h", "ip", "link", "add", "u0", "type", "veth", "peer", "name", FAR_WIRE, "netns", PREFIX + "f")
        for place, device, address in (("h", "u0", "10.98.0.1"), ("f", FAR_WIRE, "10.98.0.2")):
            self.inside(place, "ip", "addr", "add", f"{address}/24", "dev", device)
            self.inside(place, "ip", "link", "set", device, "up")
        socket = self.folder / "far.sock"
        self.start("f", TARGET / "weaved", "--name", "f", "--state-dir", self.folder / "far", "--socket", socket)
        wait_until(socket.is_socket, 10, "the second host's socket")
        token = json.loads(self.ctl("token", "create", "-o", "json"))["token"]
        far = lambda *words: run(TARGET / "weavectl", "--socket", socket, *words)  # noqa: E731
        far("join", token)
        said = json.loads(far("attach", self.netns(FAR), "--name", FAR, "-o", "json"))
        self.ips[FAR] = said["ips"][0]["address"].split("/")[0]
        self.tell(FAR, "ok")
        self.start(FAR, HERE / "answering.py", FAR, self.folder / f"{FAR}.mode")

    def misbehave(self, fault):
        super().misbehave(fault)
        self.inside("f", "ip", "link", "set", FAR_WIRE, "down" if fault == LOST else "up")

    def address(self, name, fault):
        return (self.far_addresses if fault == LOST else self.addresses)[name]


def wait_for_calm(host, name, fault, clients):
    """Until all requests are answered again, some of them by the server that will misbehave."""
    address, server, calm = host.address(name, fault), FAR if fault == LOST else VICTIM, {}

    def is_calm():
        calm.update(host.ask(address, 50, 1, clients=clients))
        return not calm["failed"] and server in calm["answers"]

    try:
        # Whoever remembers what was before forgets it here, as far as it ever does.
        wait_until(is_calm, 60, f"{name} serves all")
    except Failed as late:
        if not calm:
            raise
        if calm["failed"]:
            raise Failed(f"{late}: {calm['failed']} failed") from None
        raise Failed(f"{name} never asked {server}, so `{fault}` there would show nothing: answers {calm['answers']}") from None


def measure(host, asked):
    rows, clients = [], CLIENTS[: asked.clients]
    for fault in asked.faults:
        for name in asked.names:
            host.misbehave("none")
            wait_for_calm(host, name, fault, clients)
            host.misbehave(fault)
            row = host.ask(host.address(name, fault), asked.rate, asked.seconds, clients=clients)
            row = {"fault": fault, "name": name, "clients": asked.clients, **row, "share": sum(row["failed"].values()) / row["asked"]}
            print(f"{fault:8} {name:12} {row['share']:7.2%} of {row['asked']} failed {row['failed']}  p50 {row['p50_ms']:.1f} ms  p99 {row['p99_ms']:.0f} ms", flush=True)
            rows.append(row)
    return rows


def arguments():
    parser = argparse.ArgumentParser(prog="./run bench failures", description="The share of failed requests when one of three servers misbehaves.")
    parser.add_argument("--clients", type=int, choices=[1, 2], default=2, help="how many containers share the requests (default: %(default)s)")
    parser.add_argument("--faults", default=",".join(FAULTS), metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every row there")
    parser.add_argument("--peers", default=",".join(NAMES), metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--rate", type=int, default=100, help="requests a second (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=5, help="length of each measurement, from the fault's beginning (default: %(default)s)")
    asked = parser.parse_args()
    asked.names, asked.faults = asked.peers.split(","), asked.faults.split(",")
    if not set(asked.names) <= set(NAMES) or not set(asked.faults) <= set(FAULTS) or min(asked.rate // asked.clients, asked.seconds) < 1:
        parser.error(f"--peers are {', '.join(NAMES)}; --faults {', '.join(FAULTS)}; --rate and --seconds at least 1")
    return asked


def with_servers(work, kind=Servers):
    """What `work` makes of a host with its servers, which are removed afterwards. Ends the program, with the cause, on failure."""
    if os.geteuid() != 0:
        sys.exit("bench: making network namespaces needs root: run it as root")
    try:
        host = kind()
        try:
            return work(host)
        finally:
            host.close()
    except Failed as fault:
        sys.exit(f"bench: FAILED {fault}")


def main():
    asked = arguments()
    rows = with_servers(lambda host: measure(host, asked), AndAFarHost)
    if asked.json:
        asked.json.write_text(json.dumps({"bench": "failures", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
