#!/usr/bin/env -S python3 -B
"""How many connections the relay holds at once, what each costs while it is idle, and what happens beyond that.

A client opens connections through a Service of the relay and asks each once, up to the number that is asked for and then
more than there may be. At the limit, those beyond must wait without an answer, while what is open, Services of the
kernel engine and the node itself go on; when some end, as many of those that wait are served. It fails if that is not so.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from failures import HERE, with_servers
from hosts import Failed, netns

STEP = 1000
BEYOND = 100


class Holding:
    """The client, which does what it is told."""

    def __init__(self, host, address):
        words = ["nsenter", f"--net={netns('c')}", "--", HERE / "holding.py", address, 80]
        self.process = host.talk_to(words)

    def tell(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        if not said:
            raise Failed(f"the client ended when it was told to {what}")
        return int(said)


def node_of(host):
    """The node's process."""
    return next(one.pid for one in host.running if "weaved" in " ".join(map(str, one.args)))


def seen(pid):
    """Its memory in KiB, the kernel's small objects in KiB, and its descriptors."""
    status, memory = Path(f"/proc/{pid}/status").read_text(), Path("/proc/meminfo").read_text()
    of = lambda text, name: int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])  # noqa: E731
    return of(status, "VmRSS:"), of(memory, "Slab:"), len(os.listdir(f"/proc/{pid}/fd"))


def held(host):
    """How many connections the relay has open."""
    said = json.loads(host.ctl("service", "describe", "relay", "-o", "json"))
    return sum(one["relayed"]["open"] for one in said["backends"] if one.get("relayed"))


def insist(holds, what):
    if not holds:
        raise Failed(what)


def fill(holding, most):
    """Opens connections until no more are answered."""
    open_, answered = 0, 0
    while open_ < most and open_ == answered:
        open_ += STEP
        answered = holding.tell(f"open {STEP}")
        print(f"{answered} of {open_} are answered", flush=True)
    return open_, answered


def bench(host, most):
    node, holding = node_of(host), Holding(host, host.addresses["ours-relay"])
    insist(not host.ask(host.addresses["ours-relay"], 50, 1)["failed"], "the relay does not serve")
    before = seen(node)
    open_, answered = fill(holding, most)
    rss, slab, descriptors = (now - then for now, then in zip(seen(node), before, strict=True))
    row = {
        "answered": answered,
        "descriptors_each": descriptors / answered,
        "node_bytes_each": round(rss * 1024 / answered),
        "kernel_bytes_each_with_client_and_server": round(slab * 1024 / answered),
    }
    print("  ".join(f"{key}={value}" for key, value in row.items()))
    if answered == open_:
        return row
    insist(holding.tell("ask") == answered, "some of those that are open do not answer at the limit")
    insist(holding.tell(f"open {BEYOND}") == answered, "more were answered than there may be")
    insist(not host.ask(host.addresses["ours-kernel"], 50, 1)["failed"], "the kernel's Service suffers")
    insist(host.ctl("status", "-o", "json"), "the node suffers")
    left = holding.tell(f"close {BEYOND}")
    insist(left == answered, f"when {BEYOND} ended, {left - answered + BEYOND} of those that waited were served")
    print(f"at the limit of {answered}: what is open goes on, others wait, and {BEYOND} that end let {BEYOND} in")
    return row


def main():
    parser = argparse.ArgumentParser(prog="./run bench hold", description="How many connections the relay holds, and what each costs.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there")
    parser.add_argument("--most", type=int, default=12000, help="how many to open at most (default: %(default)s)")
    asked = parser.parse_args()
    row = with_servers(lambda host: bench(host, asked.most))
    if asked.json:
        asked.json.write_text(json.dumps({"bench": "hold", **row}, indent=1) + "\n")


if __name__ == "__main__":
    main()
