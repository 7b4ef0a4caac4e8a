#!/usr/bin/env -S python3 -B
"""The overlay bench: ours beside plain routing and other encrypted overlays, interleaved run by run.

Every run builds two fresh hosts (see hosts.py), brings one overlay up (overlays.py), measures (measure.py) and removes
everything. Peers take turns, so that whatever else the machine does falls on all of them alike. The table at the end
has the medians. A peer that is missing or has a zero in any column fails the bench, after the rest was printed.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
from pathlib import Path

from hosts import WIRES, Failed, Hosts, remove_leftovers, take_lock
from measure import COLUMNS, measure
from overlays import OVERLAYS, versions

RATIO_TO = {"plain": "plain", "wireguard-go": "wg-go"}  # the table's last columns: tcp1 as a multiple of these


def arguments():
    parser = argparse.ArgumentParser(prog="./run bench overlay", description="Compares ours with plain routing and other encrypted overlays.")
    parser.add_argument("--wire", choices=WIRES, help="; ".join(f"{name}: {what}" for name, what in WIRES.items()) + " (default: super)")
    parser.add_argument("--loss", type=numbers, default="0", metavar="PERMILLE,...", help="packets in 1000 that the wire loses at random; implies --wire packet")
    parser.add_argument("--mtu", type=numbers, default="1500", metavar="N,...", help="the wire's MTU (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each overlay (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=4, help="length of each throughput measurement (default: %(default)s)")
    parser.add_argument("--pings", type=int, default=500, help="round trips measured in each run (default: %(default)s)")
    parser.add_argument("--peers", default=",".join(OVERLAYS), metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every run there, one row each")
    asked = parser.parse_args()
    asked.names = [name for name in asked.peers.replace(",", " ").split()]
    for name in asked.names:
        if name not in OVERLAYS:
            parser.error(f"no overlay called {name}: {', '.join(OVERLAYS)}")
    asked.wire = asked.wire or ("packet" if any(asked.loss) else "super")
    if any(asked.loss) and asked.wire != "packet":
        parser.error("--loss needs --wire packet: on the other wires one lost packet is a whole super-packet")
    fits = all(0 <= loss < 1000 for loss in asked.loss) and all(1280 <= mtu <= 9000 for mtu in asked.mtu)
    if not fits or min(asked.runs, asked.seconds, asked.pings) < 1 or not asked.names:
        parser.error("--loss is 0 to 999, --mtu 1280 to 9000, the others at least 1")
    return asked


def numbers(text):
    """Several whole numbers, separated by commas; ValueError is argparse's to report."""
    return [int(word) for word in text.split(",")]


def main():
    asked = arguments()
    lock = take_lock()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        rows, faults = bench(asked)
    except Failed as fault:
        sys.exit(f"bench: {fault}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        ignore_signals()
        remove_leftovers()
        os.unlink(lock.name)
    for wire in wires(asked):
        print_table([row for row in rows if (row["loss_permille"], row["mtu"]) == wire], wire)
    if asked.json:
        asked.json.write_text(json.dumps({"bench": "overlay", "rows": rows}, indent=1) + "\n")
    for fault in faults:
        print(f"bench: FAILED {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


def ignore_signals():
    """From here on only removing is left, and it must not be cut short."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def bench(asked):
    """All runs: (rows, what went wrong)."""
    for line in versions(asked.names):
        print(f"version: {line}")
    print(f"wire: {asked.wire} ({WIRES[asked.wire]}), {asked.seconds} s a measurement", flush=True)
    rows, faults = [], []
    for number, (loss, mtu), name in itertools.product(range(1, asked.runs + 1), wires(asked), asked.names):
        what = f"run {number}, loss {loss} permille, MTU {mtu}, {name}"
        print(f"{what}:", end=" ", flush=True)
        row, wrong = one_run(asked, loss, mtu, name)
        faults += [f"{what}: {fault}" for fault in wrong]
        if row is None:
            print("FAILED", flush=True)
            continue
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        rows.append({"name": name, "run": number, "wire": asked.wire, "loss_permille": loss, "mtu": mtu, **row})
    return rows, faults


def wires(asked):
    """Every loss in permille with every MTU."""
    return list(itertools.product(asked.loss, asked.mtu))


def one_run(asked, loss, mtu, name):
    """One overlay brought up, measured and removed: (columns or None, what went wrong)."""
    hosts = None
    try:
        hosts = Hosts(asked.wire, mtu, loss)
        row, wrong = measure(hosts, OVERLAYS[name](hosts), asked.seconds, asked.pings)
        return row, wrong + [f"{key} is zero" for key, value in row.items() if not value]
    except Failed as fault:
        said = hosts.log_tail() if hosts else []
        return None, ["\n    ".join([str(fault), *said])]
    finally:
        if hosts:
            hosts.close()


def print_table(rows, wire):
    """Of one wire (loss, MTU): medians of each overlay, and its one-stream TCP as a multiple of plain routing's and of wireguard-go's."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    medians = {name: {key: statistics.median(row[key] for row in rows if row["name"] == name) for key in COLUMNS} for name in names}
    bases = {name: short for name, short in RATIO_TO.items() if medians.get(name, {}).get("tcp1_gbps")}
    head = ["median of " + str(max((row["run"] for row in rows), default=0)), *COLUMNS.values()]
    head += [f"{what} × {short}" for short in bases.values() for what in ("tcp1", "tcp4", "CPU")]
    lines = [head]
    for name in names:
        cells = [name, *(f"{medians[name][key]:.3g}" for key in COLUMNS)]
        for base in bases:
            for key in ("tcp1_gbps", "tcp4_gbps", "cpu_s_per_gb"):
                below = medians[base][key]
                cells.append(f"{medians[name][key] / below:.2f}" if below else "-")
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    print(f"\nloss {wire[0]} permille, MTU {wire[1]}")
    for line in lines:
        print("  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
