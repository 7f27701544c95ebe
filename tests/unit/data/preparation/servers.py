# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import final


@dataclass
class Request:
    path: str

    headers: dict[str, str]


@final
@dataclass
class FileServer:
    """
    Serves files from memory as the servers of data sets do, failures included.

    It also answers as a proxy, for which a whole URL is a path.
    """

    files: dict[str, bytes] = field(default_factory=dict)

    etags: dict[str, str] = field(default_factory=dict)
    """The entity tag of a path; without one, a server cannot tell files apart."""

    redirects: dict[str, str] = field(default_factory=dict)

    statuses: list[int] = field(default_factory=list)
    """What the next requests are answered with, before anything is served."""

    cut_after: list[int] = field(default_factory=list)
    """After how many bytes the connection of each of the next answers breaks."""

    headers: dict[str, str] = field(default_factory=dict)
    """What is sent instead of the right headers."""

    ignores_range: bool = False

    requests: list[Request] = field(default_factory=list)

    url: str = ""


@contextmanager
def serve(**options: object) -> Iterator[FileServer]:
    """Starts a server on this machine; ``options`` are fields of :class:`FileServer`."""
    state = FileServer(**options)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append(Request(self.path, dict(self.headers.items())))

            # Connections are not kept: a cut one must not confuse the next request.
            self.close_connection = True

            if state.statuses:
                self._send(state.statuses.pop(0), b"")
            elif self.path in state.redirects:
                self._send(302, b"", Location=state.redirects[self.path])
            elif self.path in state.files:
                self._send_file(state.files[self.path])
            else:
                self._send(404, b"")

        def _send_file(self, data: bytes) -> None:
            headers = {}

            etag = state.etags.get(self.path)

            if etag is not None:
                headers["ETag"] = etag

            start = self._get_start(etag)

            if start is None:
                self._send(200, data, **headers)
            elif start >= len(data):
                self._send(416, b"")
            else:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"

                self._send(206, data[start:], **headers)

        def _get_start(self, etag: str | None) -> int | None:
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))

            if match is None or state.ignores_range:
                return None

            condition = self.headers.get("If-Range")

            return int(match[1]) if condition in (None, etag) else None

        def _send(self, status: int, data: bytes, **headers: str) -> None:
            self.send_response(status)

            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)

            length = {"Content-Length": str(len(data))}

            for name, value in {**length, **state.headers}.items():
                self.send_header(name, value)

            self.end_headers()

            if status in (200, 206) and state.cut_after:
                data = data[: state.cut_after.pop(0)]

            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    state.url = f"http://127.0.0.1:{server.server_address[1]}"

    # A short interval, or each test would wait half a second for the end.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)

    thread.start()

    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
