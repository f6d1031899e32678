"""A web server for tests: pages by path, and what it was asked."""

from __future__ import annotations

import gzip
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_LOCK = threading.Lock()


@dataclass
class Web:
    """A running server on loopback."""

    port: int
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path, headers (names in lower case)."""
    pages: dict[str, bytes] = field(default_factory=dict)
    """Further ones, by path without the slash."""
    server_names: list[str | None] = field(default_factory=list)
    """What TLS clients have asked for (SNI)."""
    num_slow: int = 0
    most_slow: int = 0
    """Requests of /slow served at one time."""

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@contextmanager
def serve_web(certificate: str = "") -> Iterator[Web]:
    """Paths: /echo (JSON of the request), /redirect?to=URL&status=N, /bytes?n=N, /gzip?n=N (zeros), /slow?s=S, /drip,
    /status?n=N, /broken, /page, /packed?as=ENCODING.  With a certificate: TLS."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    web = Web(server.server_address[1])
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.sni_callback = lambda _sock, name, _context: web.server_names.append(name)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.web = web  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        headers = {k.lower(): v for k, v in self.headers.items()}
        self.server.web.asked.append((self.command, self.path, headers))  # type: ignore[attr-defined]
        body = self.rfile.read(int(headers.get("content-length", 0)))
        getattr(self, f"page_{parts.path.strip('/')}", self.page_none)(query, body, headers)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _serve

    def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def page_none(self, query: Any, body: bytes, headers: Any) -> None:
        page = self.server.web.pages.get(self.path.strip("/"))  # type: ignore[attr-defined]
        self._answer(b"no such page" if page is None else page, 404 if page is None else 200)

    def page_page(self, query: Any, body: bytes, headers: Any) -> None:
        self._answer("red blue green\nsecond lïne\n".encode())

    def page_echo(self, query: Any, body: bytes, headers: Any) -> None:
        told = {"method": self.command, "path": self.path, "headers": headers, "body": body.decode("latin-1")}
        self._answer(json.dumps(told).encode(), X_Told="yes", Set_Cookie="a=b")

    def page_redirect(self, query: Any, body: bytes, headers: Any) -> None:
        self._answer(b"elsewhere", int(query.get("status", 302)), Location=query["to"])

    def page_status(self, query: Any, body: bytes, headers: Any) -> None:
        self._answer(b"so it is", int(query["n"]))

    def page_bytes(self, query: Any, body: bytes, headers: Any) -> None:
        self._answer(bytes(range(256)) * (int(query["n"]) // 256))

    def page_gzip(self, query: Any, body: bytes, headers: Any) -> None:
        self._answer(gzip.compress(bytes(int(query["n"]))), Content_Encoding="gzip")

    def page_packed(self, query: Any, body: bytes, headers: Any) -> None:
        self._answer(gzip.compress(b"x" * 1000)[:-20], Content_Encoding=query["as"])

    def page_slow(self, query: Any, body: bytes, headers: Any) -> None:
        web = self.server.web  # type: ignore[attr-defined]
        with _LOCK:
            web.num_slow += 1
            web.most_slow = max(web.most_slow, web.num_slow)
        time.sleep(float(query["s"]))
        with _LOCK:
            web.num_slow -= 1
        self._answer(b"late")

    def page_drip(self, query: Any, body: bytes, headers: Any) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"x" * int(query.get("n", 1)))
                self.wfile.flush()
                time.sleep(float(query.get("s", 0)))
        except OSError:
            pass

    def page_broken(self, query: Any, body: bytes, headers: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"too short")

    def log_message(self, format: str, *args: Any) -> None: ...
