"""A server on this machine that answers as the Hugging Face Hub does, and as any other; with faults on demand."""

import hashlib
import http.server
import re
import socket
import struct
import threading
import time

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """Serves `repos[repo][file]` and `files[name]`, bytes each, and remembers what it was asked.

    Attributes:
      requests: (method, path, Range header or None) of each request.
      drop_after: closes the connection after so many bytes of the next body, once.
      reset: does so with a reset instead of an orderly end.
      corrupt: sends bodies with a byte changed, of the right length.
      ranges: whether it grants ranges.
      heads: whether it answers HEAD.
      bytes_per_second: how fast bodies go, or None.
    """

    def __init__(self):
        self.repos, self.files, self.requests = {}, {}, []
        self.drop_after = self.bytes_per_second = None
        self.reset, self.corrupt, self.ranges, self.heads = False, False, True, True
        handler = type("Bound", (_Handler,), {"state": self})
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def bodies(self):
        """Ranges of the files' bodies that were asked for. The client asks for things of its own too, under /api/."""
        return [asked for method, path, asked in self.requests if method == "GET" and not path.startswith("/api/")]

    def close(self):
        self.http.shutdown()
        self.http.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    state: Server

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        state = self.state
        state.requests.append((self.command, self.path, self.headers.get("Range")))
        if not body and not state.heads:
            return self.send_error(405)
        content, headers = self.find()
        if content is None:
            return self.refuse(headers)
        start = self.asked_start() if state.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in (headers | {"Content-Length": str(len(content) - start)}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.send(content[start:])
        return None

    def find(self):
        """Content and headers; the headers of a refusal where there is no content."""
        state = self.state
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if not found:
            content = state.files.get(self.path.rpartition("/")[2].partition("?")[0])
            return content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'} if content is not None else {}
        repo, _, file = found.groups()
        if repo not in state.repos:
            return None, {"X-Error-Code": "RepoNotFound"}
        content = state.repos[repo].get(file)
        if content is None:
            return None, {
                "X-Error-Code": "EntryNotFound",
                "X-Error-Message": "Entry not found",
                "X-Repo-Commit": COMMIT,
            }
        if len(content) < 100_000:  # in Git itself, named by Git's hash
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return content, {"X-Repo-Commit": COMMIT, "ETag": f'"{blob}"'}
        large = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
        return content, {"X-Repo-Commit": COMMIT} | large

    def refuse(self, headers):
        self.send_response(404)
        for name, value in (headers | {"Content-Length": "0"}).items():
            self.send_header(name, value)
        self.end_headers()

    def asked_start(self):
        return int(re.match(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])

    def send(self, data):
        state = self.state
        if state.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if state.drop_after is not None:
            data, state.drop_after = data[: state.drop_after], None
        for start in range(0, len(data), 1 << 16):
            self.wfile.write(data[start : start + (1 << 16)])
            if state.bytes_per_second:
                time.sleep((1 << 16) / state.bytes_per_second)
        if state.reset:
            state.reset = False
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *args):
        """Silent."""


def use_as_hub(server, folder, monkeypatch):
    """Makes the client ask `server` and keep its caches in `folder`, as environment variables would at its import."""
    from huggingface_hub import constants

    settings = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_ASSETS_CACHE": str(folder / "assets"),
        "HF_HUB_OFFLINE": False,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
