#!/usr/bin/env -S python3 -B
"""The fairness bench: a TCP stream through an overlay beside a plain one between the hosts, on one narrow, lossy wire.

The wire carries a fixed rate with a queue of 20 ms, so both streams want the same bytes a second. Beside plain routing
as the overlay the shares show what two equals get here; an overlay that hid losses or answered them too mildly would
take more, one that made too much of them less. It fails if a stream gets less than a tenth.
"""

import argparse
import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hosts import UNDERLAY, Failed, Hosts, collect, wait_until
from overlays import OVERLAYS, versions

LEAST = 0.1  # of what both get together: with less a stream starves
PORTS = {"overlay": 5201, "beside": 5202}


def arguments():
    parser = argparse.ArgumentParser(prog="./run bench fairness", description="A stream through an overlay beside a plain one on one lossy wire.")
    parser.add_argument("--loss", type=int, default=1, metavar="PERMILLE", help="packets in 1000 that the wire loses at random (default: %(default)s)")
    parser.add_argument("--mtu", type=int, default=1500, help="the wire's MTU (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=300, metavar="MBIT", help="what the wire carries each way (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each overlay (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=6, help="how long both send (default: %(default)s)")
    parser.add_argument("--peers", default="plain,ours", metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every run there, one row each")
    asked = parser.parse_args()
    asked.names = asked.peers.replace(",", " ").split()
    if not asked.names or any(name not in OVERLAYS for name in asked.names):
        parser.error(f"--peers are of {', '.join(OVERLAYS)}")
    if not 0 <= asked.loss < 1000 or not 1280 <= asked.mtu <= 9000 or min(asked.runs, asked.seconds, asked.rate) < 1:
        parser.error("--loss is 0 to 999, --mtu 1280 to 9000, the others at least 1")
    return asked


def main():
    asked = arguments()
    sys.exit(report(asked.names, collect("fairness", series(asked), asked.json)))


def series(asked):
    print("\n".join(f"version: {line}" for line in versions(asked.names)))
    print(f"wire: {asked.rate} Mbit/s, MTU {asked.mtu}, loss {asked.loss} permille, {asked.seconds} s", flush=True)
    wire = {"wire": "packet", "loss_permille": asked.loss, "mtu": asked.mtu, "rate_mbit": asked.rate}
    for number in range(1, asked.runs + 1):
        for name in asked.names:
            yield {"name": name, "run": number, **wire, **one_run(asked, name)}


def one_run(asked, name):
    """Both streams at once: what arrived of each, and the overlay's share."""
    hosts = Hosts("packet", asked.mtu, asked.loss)
    try:
        for port in ("pA", "pB"):
            hosts.inside("sw", "tc", "qdisc", "replace", "dev", port, "root", "tbf", "rate", f"{asked.rate}mbit", "burst", "64kb", "latency", "20ms")
        ways = {"overlay": ("c", OVERLAYS[name](hosts)), "beside": ("h", UNDERLAY["B"])}
        for way, (kind, _) in ways.items():
            hosts.start(f"{kind}B", "iperf3", "-s", "-p", PORTS[way])
            wait_until(lambda: f":{PORTS[way]} " in hosts.inside(f"{kind}B", "ss", "-Hltn"), 5, "iperf3's server")  # noqa: B023
        with ThreadPoolExecutor(len(ways)) as streams:
            came = {way: streams.submit(stream, hosts, f"{kind}A", target, PORTS[way], asked.seconds) for way, (kind, target) in ways.items()}
            mbit = {way: future.result() for way, future in came.items()}
        return {"overlay_mbit": mbit["overlay"], "beside_mbit": mbit["beside"], "share": round(mbit["overlay"] / sum(mbit.values()), 3)}
    finally:
        hosts.close()


def stream(hosts, place, target, port, seconds):
    """Mbit/s of payload that arrived."""
    said = hosts.inside(place, "iperf3", "-J", "-c", target, "-p", port, "-t", seconds, timeout=seconds + 20)
    try:
        return round(json.loads(said)["end"]["sum_received"]["bits_per_second"] / 1e6, 1)
    except (ValueError, KeyError):
        raise Failed(f"iperf3 ended without figures: {said[-200:]}") from None


def report(names, rows):
    """Prints medians; 1 if a stream starved, else 0."""
    starved = 0
    for name in names:
        of = lambda key: statistics.median(row[key] for row in rows if row["name"] == name)  # noqa: B023, E731
        fair = LEAST <= of("share") <= 1 - LEAST
        starved |= not fair
        print(f"{name}: {of('overlay_mbit'):.0f} Mbit/s beside {of('beside_mbit'):.0f}, a share of {of('share'):.2f}{'' if fair else ': STARVED'}")
    return int(starved)


if __name__ == "__main__":
    main()
