#!/usr/bin/env -S python3 -B
"""A client for the benches of failures and of endurance: so many requests a second, whatever becomes of those before.

Each is a connection of its own, or a datagram of a socket of its own, and has failed when there is no answer within two
seconds. Prints one line of JSON at the end.
"""

import asyncio
import json
import statistics
import sys
import time
from collections import Counter

PATIENCE = 2.0


async def by_tcp(host, port):
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        said = await reader.read(200)
        if not said.startswith(b"HTTP/1.1 200"):
            raise ConnectionResetError("it ended without an answer")
    finally:
        writer.transport.abort()


class Waiting(asyncio.DatagramProtocol):
    """Waits for one datagram."""

    def __init__(self):
        self.heard = asyncio.get_running_loop().create_future()

    def datagram_received(self, data, addr):
        if not self.heard.done():
            self.heard.set_result(data)

    def error_received(self, exc):
        if not self.heard.done():
            self.heard.set_exception(exc)


async def by_udp(host, port):
    loop = asyncio.get_running_loop()
    transport, waiting = await loop.create_datagram_endpoint(Waiting, remote_addr=(host, port))
    try:
        transport.sendto(b"?")
        await waiting.heard
    finally:
        transport.abort()


async def one(how, host, port, took, failed):
    start = time.monotonic()
    try:
        await asyncio.wait_for(how(host, port), PATIENCE)
        took.append(time.monotonic() - start)
    except TimeoutError:
        failed["no answer"] += 1
    except ConnectionRefusedError:
        failed["refused"] += 1
    except OSError:
        failed["broken"] += 1


async def main(protocol, host, port, rate, seconds):
    how = {"tcp": by_tcp, "udp": by_udp}[protocol]
    took, failed, running = [], Counter(), []
    start = time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0, start + number / rate - time.monotonic()))
        running.append(asyncio.create_task(one(how, host, port, took, failed)))
    await asyncio.gather(*running)
    ms = sorted(1000 * each for each in took) or [0]
    figures = {"asked": len(running), "failed": dict(failed), "p50_ms": statistics.median(ms), "p99_ms": ms[int(len(ms) * 0.99)]}
    print(json.dumps(figures))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])))
