#!/usr/bin/env -S python3 -B
"""A client for the benches of failures and of endurance: so many requests a second, whatever becomes of those before.

Each is a connection of its own, or a datagram of a socket of its own, and has failed when there is no answer within two
seconds. Prints one line of JSON at the end: how many of them failed and why, how many each server answered, and how many
milliseconds each answer took.
"""

import asyncio
import json
import sys
import time
from collections import Counter

PATIENCE = 2.0


async def by_tcp(host, port):
    """The name of the server that answers, as of the other one."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        said = await reader.read(200)
        if not said.startswith(b"HTTP/1.1 200"):
            raise ConnectionResetError("it ended without an answer")
        return said.rpartition(b"\r\n\r\n")[2]
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
        return (await waiting.heard).split()[0]
    finally:
        transport.abort()


async def one(how, host, port, took, answers, failed):
    start = time.monotonic()
    try:
        server = await asyncio.wait_for(how(host, port), PATIENCE)
        took.append(round(1000 * (time.monotonic() - start), 3))
        answers[server.decode()] += 1
    except TimeoutError:
        failed["no answer"] += 1
    except ConnectionRefusedError:
        failed["refused"] += 1
    except OSError:
        failed["broken"] += 1


async def main(protocol, host, port, rate, seconds):
    how = {"tcp": by_tcp, "udp": by_udp}[protocol]
    took, answers, failed, running = [], Counter(), Counter(), []
    start = time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0, start + number / rate - time.monotonic()))
        running.append(asyncio.create_task(one(how, host, port, took, answers, failed)))
    await asyncio.gather(*running)
    print(json.dumps({"asked": len(running), "failed": failed, "answers": answers, "took_ms": took}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])))
