#!/usr/bin/env -S python3 -B
"""The bench of what seeing flows costs: the same nodes with it off, on while nobody looks, and looked at.

Two hosts, a container on each. One asks the other over and over on a new connection, at an even pace; what the two nodes
take of a core meanwhile is read from the kernel, and what the whole machine takes, since the kernel does some of the work
for whoever listens to it, and counts bytes where flows are seen. Then one TCP stream shows whether the overlay is
slower. The ways take turns.
"""

import argparse
import os
import statistics
from pathlib import Path

from fairness import stream
from hosts import Failed, Hosts, collect, wait_until
from measure import spread
from overlays import OURS, ours

WAYS = ("off", "on", "looked at")
SERVER = Path(__file__).with_name("connecting.py")
PORTS = {"ask": 7000, "stream": 5201}
COUNTING = "net.netfilter.nf_conntrack_acct"
TICKS = os.sysconf("SC_CLK_TCK")


def arguments():
    parser = argparse.ArgumentParser(prog="./run bench flows", description="What seeing flows costs: a node's CPU and the overlay's throughput, off and on.")
    parser.add_argument("--rate", type=int, default=1000, help="new connections a second (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each way (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=10, help="how long connections are made (default: %(default)s)")
    parser.add_argument("--stream", type=int, default=4, metavar="SECONDS", help="how long a stream runs (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every run there, one row each")
    asked = parser.parse_args()
    if min(asked.rate, asked.runs, asked.seconds, asked.stream) < 1:
        parser.error("everything is at least 1")
    return asked


def main():
    asked = arguments()
    report(collect("flows", series(asked), asked.json))


def series(asked):
    for number in range(1, asked.runs + 1):
        for way in WAYS:
            yield {"way": way, "run": number, **one_run(asked, way)}


def one_run(asked, way):
    """The share of a core of either node and of the machine's cores while connections are made, and Gbit/s of a stream."""
    hosts = Hosts("super", 1500, 0)
    try:
        for side in "AB":
            # Whatever the machine begins with: a node that sees flows sets it, and one that does not leaves it.
            hosts.inside(f"h{side}", "sysctl", "-qw", f"{COUNTING}=0")
        target = ours(hosts, *(["--flows", "off"] if way == "off" else []))
        nodes = [node_of(hosts, side) for side in "AB"]
        expected = "0" if way == "off" else "1"
        for side in "AB":
            if hosts.inside(f"h{side}", "sysctl", "-n", COUNTING).strip() != expected:
                raise Failed(f"{COUNTING} on host {side} is not {expected}, so this is not what it is called: {way}")
        if way == "looked at":
            hosts.start("hA", OURS / "weavectl", "--socket", hosts.folder / "A.sock", "flows", "-f")
        hosts.start("cB", SERVER, "serve", PORTS["ask"])
        hosts.start("cB", "iperf3", "-s", "-p", PORTS["stream"])
        for port in PORTS.values():
            wait_until(lambda: f":{port} " in hosts.inside("cB", "ss", "-Hltn"), 5, "a server")  # noqa: B023
        hosts.inside("cA", SERVER, "ask", target, PORTS["ask"], asked.rate, 2, timeout=20)  # a look or two of warming up
        before = [spent(node) for node in nodes] + [machine()]
        said = hosts.inside("cA", SERVER, "ask", target, PORTS["ask"], asked.rate, asked.seconds, timeout=asked.seconds * 3 + 20)
        after = [spent(node) for node in nodes] + [machine()]
        answered, took = map(float, said.split())
        if answered < asked.rate * asked.seconds * 0.9:
            raise Failed(f"only {answered:.0f} of {asked.rate * asked.seconds} connections were answered")
        shares = [round((new - old) / took, 4) for old, new in zip(before, after, strict=True)]
        looks = {} if way == "off" else looking(hosts)
        mbit = stream(hosts, "cA", target, PORTS["stream"], asked.stream)
        row = dict(zip(("asking", "answering", "machine"), shares, strict=True))
        return {**row, **looks, "per_s": round(answered / took), "gbit": round(mbit / 1000, 2)}
    finally:
        hosts.close()


def looking(hosts):
    """What the answering node says of its looks: seconds of CPU for one, seconds between two, connections in the table, and
    how many either node is missing since it began, at least."""
    said = {side: hosts.inside(f"h{side}", "curl", "-fsS", "http://127.0.0.1:6782/metrics").splitlines() for side in "AB"}
    value = lambda name, side="B": float(next(line for line in said[side] if line.startswith(f"{name} ")).split()[1])  # noqa: E731
    looks = {"look_s": value("weave_flow_look_seconds"), "between_s": value("weave_flow_interval_seconds"), "tracked": value("weave_conntrack_entries")}
    return {**looks, "lost": int(sum(value("weave_flow_events_lost_total", side) for side in "AB"))}


def node_of(hosts, side):
    """The process of a host's node."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"/weaved") and str(hosts.folder / f"state-{side}").encode() in words:
            return int(folder.name)
    raise Failed(f"the node of host {side} is not there")


def spent(process):
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def machine():
    """Seconds of CPU that all have used: all but idling and waiting for a disk."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def report(rows):
    """Medians, and what seeing takes more than not seeing."""
    all_of = lambda way, key: [row[key] for row in rows if row["way"] == way]  # noqa: E731
    of = lambda way, key: statistics.median(all_of(way, key))  # noqa: E731
    print(f"{'flows':12}{'asking node':>14}{'answering node':>16}{'machine':>10}{'Gbit/s':>9}")
    for way in WAYS:
        shares = "".join(f"{of(way, key) * 100:>{width}.1f} %" for key, width in (("asking", 12), ("answering", 14), ("machine", 8)))
        print(f"{way:12}{shares}{of(way, 'gbit'):>9.2f} ({min(all_of(way, 'gbit')):.2f} to {max(all_of(way, 'gbit')):.2f})")
    for way in WAYS[1:]:
        more = {key: (of(way, key) - of("off", key)) * 100 for key in ("asking", "answering", "machine")}
        node = max(more["asking"], more["answering"])
        print(f"{way}: at most {node:.1f} % of a core more for a node, {more['machine']:.1f} % for the machine")
        print(f"{way}: throughput beside off, within a turn: {spread(all_of(way, 'gbit'), all_of('off', 'gbit'))}")
        print(f"{way}: a look takes {of(way, 'look_s') * 1000:.1f} ms, {of(way, 'between_s'):.1f} s between two, {of(way, 'tracked'):.0f} connections tracked")
        print(f"{way}: lost of what was to be seen, all runs and both nodes: {sum(all_of(way, 'lost')):.0f} (weave_flow_events_lost_total)")


if __name__ == "__main__":
    main()
