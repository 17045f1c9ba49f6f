"""A small API to speak to, for what cannot be had from a real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Reply = tuple[int, dict[str, str], Any]


class SmallApi:
    """An HTTP server whose answers a test sets: `answer(method, path, query, body)` → (status, headers, JSON)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str, Any]] = []
        self.heard: Callable[[Any], object] = lambda headers: None
        self.connections: set[Any] = set()
        self.answer: Callable[[str, str, str, Any], Reply] = lambda *_: (200, {}, {})
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are kept, as the API's are

            def reply(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                url = urlsplit(self.path)
                api.heard(self.headers)
                api.connections.add(self.client_address)
                api.asked.append((self.command, self.path, self.headers.get("Authorization", ""), body))
                status, headers, value = api.answer(self.command, url.path, url.query, body)
                payload = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_PUT = do_POST = do_DELETE = reply

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
