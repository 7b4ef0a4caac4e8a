#!/usr/bin/env -S python3 -B
"""A client that holds many connections; told what to do by lines of its input, it answers each with a line.

    open N    opens N more and asks each once; says how many have had an answer so far, of all that are open
    ask       asks all that have had one; says how many answer
    close N   closes the N oldest; says how many of those that are left have had an answer
"""

import resource
import select
import socket
import sys
import time

REQUEST = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"
PATIENCE = 20.0
# For those that are expected to wait.
SETTLED = 2.0


def hear(connections, patience):
    """Which of these have something to say within the time; ends early when nothing came for a while."""
    poll, heard, last = select.epoll(), set(), time.monotonic()
    by_number = {one.fileno(): one for one in connections}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    end = last + patience
    while by_number and time.monotonic() < end and time.monotonic() - last < SETTLED:
        for number, _ in poll.poll(0.1):
            one = by_number.pop(number)
            poll.unregister(number)
            if one.recv(4096):
                heard.add(one)
            last = time.monotonic()
    poll.close()
    return heard


def main(host, port):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    held, answered = [], set()
    for line in sys.stdin:
        verb, *number = line.split()
        if verb == "open":
            for _ in range(int(number[0])):
                one = socket.create_connection((host, port), timeout=PATIENCE)
                one.sendall(REQUEST)
                held.append(one)
            answered |= hear([one for one in held if one not in answered], PATIENCE)
            said = len(answered)
        elif verb == "ask":
            for one in answered:
                one.sendall(REQUEST)
            said = len(hear(answered, PATIENCE))
        else:
            gone, held = held[: int(number[0])], held[int(number[0]) :]
            answered -= set(gone)
            for one in gone:
                one.close()
            answered |= hear([one for one in held if one not in answered], PATIENCE)
            said = len(answered)
        print(said, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
