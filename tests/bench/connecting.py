#!/usr/bin/env -S python3 -B
"""Short TCP connections at an even pace: connecting.py serve PORT, or connecting.py ask HOST PORT RATE SECONDS.

Each connection carries a request of 100 bytes and an answer of 1,000. Who asks says how many were answered.
"""

import socket
import sys
import time

REQUEST, ANSWER = b"?" * 100, b"!" * 1000


def serve(port):
    listener = socket.create_server(("0.0.0.0", port), backlog=1024)
    while True:
        one, _ = listener.accept()
        with one:
            one.recv(len(REQUEST))
            one.sendall(ANSWER)


def ask(host, port, rate, seconds):
    answered = 0
    begin = time.monotonic()
    for number in range(int(rate * seconds)):
        # Who is late catches up, so that the pace holds on the whole.
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        try:
            with socket.create_connection((host, port), timeout=2) as one:
                one.sendall(REQUEST)
                answered += bool(one.recv(len(ANSWER)))
        except OSError:
            pass
        if time.monotonic() > begin + seconds * 1.5:
            break
    print(answered, round(time.monotonic() - begin, 3))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    ask(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
