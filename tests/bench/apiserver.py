#!/usr/bin/env -S python3 -B
"""As much of a Kubernetes API server as kube-proxy needs: it lists objects that never change, and lets one watch them.

    apiserver.py PORT FILE      FILE: JSON, {"api/v1/services": [...], ...}, by the path of each resource

Only for the bench. There is no store, no access control and no protobuf: client-go takes JSON where it is answered with it.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

VERSION = "1"
# The kind and the group of the objects of each resource.
KINDS = {
    "api/v1/nodes": ("Node", "v1"),
    "api/v1/services": ("Service", "v1"),
    "apis/discovery.k8s.io/v1/endpointslices": ("EndpointSlice", "discovery.k8s.io/v1"),
    "apis/networking.k8s.io/v1/servicecidrs": ("ServiceCIDR", "networking.k8s.io/v1"),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        path, asked = url.path.strip("/"), {key: values[0] for key, values in parse_qs(url.query).items()}
        resource, _, name = path.rpartition("/")
        if path in KINDS and asked.get("watch") in ("true", "1"):
            self.watch(path, asked)
        elif path in KINDS:
            kind, group = KINDS[path]
            metadata = {"resourceVersion": VERSION}
            self.answer(200, {"kind": f"{kind}List", "apiVersion": group, "metadata": metadata, "items": self.objects(path, asked)})
        elif resource in KINDS and (found := [one for one in self.objects(resource, {}) if one["metadata"]["name"] == name]):
            self.answer(200, found[0])
        else:
            self.answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})

    def do_POST(self):
        # Events, which nobody reads here.
        said = self.rfile.read(int(self.headers.get("content-length", 0)))
        del said
        self.answer(201, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def objects(self, path, asked):
        kind, group = KINDS[path]
        _, _, wanted = asked.get("fieldSelector", "").partition("metadata.name=")
        every = [{"kind": kind, "apiVersion": group, **one} for one in self.server.objects.get(path, [])]
        return [one for one in every if not wanted or one["metadata"]["name"] == wanted]

    def watch(self, path, asked):
        """What there is already, if it is asked for (KEP-3157), and then nothing, for as long as both live."""
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if asked.get("sendInitialEvents") == "true":
            kind, group = KINDS[path]
            for one in self.objects(path, asked):
                self.event("ADDED", one)
            end = {"resourceVersion": VERSION, "annotations": {"k8s.io/initial-events-end": "true"}}
            self.event("BOOKMARK", {"kind": kind, "apiVersion": group, "metadata": end})
        self.wfile.flush()
        threading.Event().wait()

    def event(self, what, one):
        line = json.dumps({"type": what, "object": one}).encode() + b"\n"
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")

    def answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def main():
    port, file = sys.argv[1:]
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    server.daemon_threads = True
    server.objects = json.loads(Path(file).read_text())
    server.serve_forever()


if __name__ == "__main__":
    main()
