#!/usr/bin/env -S python3 -B
"""A server for the benches of failures and of endurance: answers on port 8080, TCP and UDP, with its name.

How it behaves is read anew for each connection from a file, which somebody else may write: `ok`, `hang` (takes
connections and never says a word), `reset` (breaks each at once), `close` (ends each at once) or `slow` (answers after 300 ms).
"""

import asyncio
import resource
import socket
import struct
import sys
from pathlib import Path

RESET = struct.pack("ii", 1, 0)
SLOW = 0.3


async def answer(name, mode, reader, writer):
    try:
        how = mode.read_text().strip()
        if how == "hang":
            await reader.read()
        elif how == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        elif how != "close":
            while await reader.readuntil(b"\r\n\r\n"):
                if how == "slow":
                    await asyncio.sleep(SLOW)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name))
                await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


class Echo(asyncio.DatagramProtocol):
    """Sends back what comes, with its name before it."""

    def __init__(self, name):
        self.name = name

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.transport.sendto(self.name + b" " + data, addr)


async def main(name, mode):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    name = name.encode()
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: Echo(name), local_addr=("0.0.0.0", 8080))
    server = await asyncio.start_server(lambda *ends: answer(name, mode, *ends), "0.0.0.0", 8080, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
