"""A Google Cloud Storage on this machine: as much of its JSON API as gcsfs, google-cloud-storage and tensorstore use.

Objects are whole or absent, and there is no rename and no append, as in the real one. What is stored outlives the
clients' processes, so a client may be killed at any moment.
"""

import base64
import contextlib
import hashlib
import http.server
import itertools
import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, quote, unquote

PATH = re.compile(
    r"(?P<door>/download|/upload)?/storage/v1/b/(?P<bucket>[^/]+)(?P<objects>/o)?(?:(?<=/o)/(?P<name>[^/]+))?"
    r"(?:/rewriteTo/b/(?P<to_bucket>[^/]+)/o/(?P<to_name>[^/]+))?"
)


class Refused(Exception):
    """An answer that is an error: (status, reason)."""


class Store:
    """Buckets in memory behind HTTP on a free port of the loopback.

    Attributes:
      objects: {(bucket, name): (content, generation)}.
      requests: (method, path and query) of each request.
      full: refuses every upload, as a bucket does whose quota is used up.
      watch: called with ("PUT" or "DELETE", name) before an object changes; what it raises hangs up on the client.
      page: objects in one answer to a listing; more come with a page token.
    """

    def __init__(self, *buckets: str, page: int = 1000) -> None:
        self.buckets, self.page, self.full = set(buckets), page, False
        self.watch: Callable[[str, str], None] = lambda what, name: None
        self.objects: dict[tuple[str, str], tuple[bytes, int]] = {}
        self.uploads: dict[str, dict[str, object]] = {}
        self.requests: list[tuple[str, str]] = []
        self.lock, self.generations = threading.Lock(), itertools.count(1)
        handler = type("Bound", (_Handler,), {"store": self})
        self.http = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make each client take this for Google's, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCE_METADATA_ROOT": self.url.removeprefix("http://"),  # asked for credentials, it has none
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks by gRPC what kind of bucket it is
            "EPATH_USE_TF": "false",  # where TensorFlow is installed it would be the client
        }

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Names of the objects under `prefix`, sorted."""
        with self.lock:
            return sorted(name for b, name in self.objects if b == bucket and name.startswith(prefix))

    def read(self, bucket: str, name: str) -> bytes:
        """What an object holds."""
        return self.objects[bucket, name][0]

    def close(self) -> None:
        """Stops answering."""
        self.http.shutdown()
        self.http.server_close()


@contextlib.contextmanager
def serve(*buckets: str, page: int = 1000) -> Iterator[Store]:
    """A store for the length of a block."""
    store = Store(*buckets, page=page)
    try:
        yield store
    finally:
        store.close()


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *unused: object) -> None:
        """Silent: clients are killed in the middle of a request."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # an answer in one packet, at once
    store: Store

    def answer(self) -> None:
        """Any method: the body is read whole before it is acted upon, so a client killed half-way changes nothing."""
        path, _, query = self.path.partition("?")
        self.query = {key: values[-1] for key, values in parse_qs(query).items()}
        self.body = self.read_body()
        self.store.requests.append((self.command, self.path))
        try:
            if path.startswith("/session/"):
                return self.continue_upload(path.rpartition("/")[2])
            found = PATH.fullmatch(path)
            if not found or found["bucket"] not in self.store.buckets:
                raise Refused(404, "Not Found")
            with self.store.lock:
                return self.dispatch(**{key: unquote(part or "") for key, part in found.groupdict().items()})
        except Refused as refused:
            status, reason = refused.args
            self.reply(status, {"error": {"code": status, "message": reason, "errors": []}})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - the names that http.server calls

    def dispatch(self, door: str, bucket: str, objects: str, name: str, to_bucket: str, to_name: str) -> None:
        if to_name:
            self.copy((bucket, name), (to_bucket, to_name))
        elif door == "/upload":
            self.upload(bucket)
        elif not objects:
            self.reply(200, {"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "EUROPE-WEST4"})
        elif not name:
            self.list(bucket)
        elif self.command == "DELETE":
            self.current(bucket, name)
            self.store.watch("DELETE", name)
            del self.store.objects[bucket, name]
            self.reply(204)
        elif door == "/download" or self.query.get("alt") == "media":
            self.download(bucket, name)
        else:
            self.reply(200, self.described(bucket, name, *self.current(bucket, name)))

    def list(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        after, before = self.query.get("startOffset", ""), self.query.get("endOffset", "")
        entries: dict[str, bool] = {}  # name or common prefix -> whether it is a prefix
        for name in sorted(name for b, name in self.store.objects if b == bucket and name.startswith(prefix)):
            if name < after or (before and name >= before):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            entries[prefix + head + delimiter if found else name] = bool(found)
        start = self.query.get("pageToken", "")
        waiting = [name for name in entries if name > start]
        page = waiting[: min(self.store.page, int(self.query.get("maxResults", 1000)))]
        items = [self.described(bucket, n, *self.store.objects[bucket, n]) for n in page if not entries[n]]
        answer = {"kind": "storage#objects", "items": items, "prefixes": [n for n in page if entries[n]]}
        more = {"nextPageToken": page[-1]} if len(page) < len(waiting) else {}
        self.reply(200, {key: value for key, value in answer.items() if value} | more)

    def download(self, bucket: str, name: str) -> None:
        content, generation = self.current(bucket, name)
        headers = {"x-goog-generation": str(generation), "ETag": f'"{generation}"'}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.reply(200, content, headers)
        first, last = asked.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            raise Refused(416, "The requested range cannot be satisfied. Request range not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self.reply(206, content[start:stop], headers)

    def upload(self, bucket: str) -> None:
        kind = self.query["uploadType"]
        if kind == "media":
            self.store_object(bucket, self.query["name"], self.body)
        elif kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, first, second, _ = re.split(rb"(?:^|\r?\n)--" + re.escape(boundary), self.body)
            described, content = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (first, second))
            self.store_object(bucket, json.loads(described)["name"], content)
        else:
            session = str(next(self.store.generations))
            name = self.query.get("name") or json.loads(self.body)["name"]
            self.store.uploads[session] = {"bucket": bucket, "name": name, "query": self.query, "data": b""}
            self.reply(200, {}, {"Location": f"{self.store.url}/session/{session}"})

    def continue_upload(self, session: str) -> None:
        with self.store.lock:
            if session not in self.store.uploads:
                raise Refused(404, "no such upload")
            upload = self.store.uploads[session]
            if self.command == "DELETE":
                del self.store.uploads[session]
                return self.reply(204)
            upload["data"] += self.body
            if self.headers.get("Content-Range", "bytes */0").endswith("/*"):
                return self.reply(308, b"", {"Range": f"bytes=0-{len(upload['data']) - 1}"})
            del self.store.uploads[session]
            self.query = upload["query"]
            return self.store_object(upload["bucket"], upload["name"], upload["data"])

    def copy(self, source: tuple[str, str], target: tuple[str, str]) -> None:
        content, _ = self.current(*source)
        generation = self.put(*target, content)
        resource = self.described(*target, content, generation)
        self.reply(200, {"kind": "storage#rewriteResponse", "done": True, "resource": resource})

    def store_object(self, bucket: str, name: str, content: bytes) -> None:
        self.reply(200, self.described(bucket, name, content, self.put(bucket, name, content)))

    def put(self, bucket: str, name: str, content: bytes) -> int:
        if self.store.full:
            raise Refused(403, "the quota of this bucket is used up")
        self.store.watch("PUT", name)
        wanted = self.query.get("ifGenerationMatch")
        _, there = self.store.objects.get((bucket, name), (b"", 0))
        if wanted is not None and int(wanted) != there:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
        generation = next(self.store.generations)
        self.store.objects[bucket, name] = (content, generation)
        return generation

    def current(self, bucket: str, name: str) -> tuple[bytes, int]:
        """Content and generation, where the conditions of the request hold."""
        if (bucket, name) not in self.store.objects:
            raise Refused(404, f"No such object: {bucket}/{name}")
        content, generation = self.store.objects[bucket, name]
        if int(self.query.get("ifGenerationMatch", generation)) != generation:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if self.query.get("ifGenerationNotMatch") == str(generation):
            raise Refused(304, "Not Modified")
        return content, generation

    def described(self, bucket: str, name: str, content: bytes, generation: int) -> dict[str, str]:
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "mediaLink": f"{self.store.url}/download/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media",
        }

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError("the client is gone")
        return body

    def reply(self, status: int, content: object = b"", headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json; charset=UTF-8"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Silent."""
