"""The beginning of an association of SCTP by packets made by hand, for kernels without sockets of it.

usage: sctp.py SECONDS client ADDRESS PORT | SECONDS server [ADDRESS]

The server hears the family of its address, IPv4 without one. The client sends an INIT from port 4321 and says who answered; the server answers one and says whom it saw.
Each waits for a packet for so many seconds at most.
"""

import socket, struct, sys

def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF

def packet(source, target, tag, kind, mine):
    chunk = struct.pack("!BBHIIHHI", kind, 0, 20, mine, 65536, 1, 1, 7)
    head = lambda sum: struct.pack("!HHI", source, target, tag) + struct.pack("<I", sum)
    return head(crc32c(head(0) + chunk)) + chunk

v6 = len(sys.argv) > 3 and ":" in sys.argv[3]
raw = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_RAW, 132)
raw.settimeout(float(sys.argv[1]))
print("ready", flush=True)

def receive(kind):
    while True:
        data, (address, *_) = raw.recvfrom(2048)
        body = data if v6 else data[(data[0] & 15) * 4:] # raw sockets of IPv6 keep the header to themselves
        source, target, tag = struct.unpack("!HHI", body[:8])
        if body[12] == kind:
            return address, source, target, struct.unpack("!I", body[16:20])[0]

if sys.argv[2] == "client":
    raw.sendto(packet(4321, int(sys.argv[4]), 0, 1, 99), (sys.argv[3], 0))
    address, source, target, tag = receive(2)
    print(address, source, target, flush=True)
else:
    address, source, target, tag = receive(1)
    print(address, target, flush=True)
    raw.sendto(packet(target, source, tag, 2, 55), (address, 0))
