"""A server that is called back."""

from __future__ import annotations

import http.server
import ssl
import threading
from typing import Any


class Receiver(http.server.ThreadingHTTPServer):
    """Notes what it is sent: path, headers and body; answers with ``status``."""

    def __init__(self, trust: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.host = f"127.0.0.1:{self.server_port}"
        self.status, self.headers = 202, {}  # type: int, dict[str, str]
        if trust is not None:
            self.socket = trust.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        pass  # handshakes that fail on purpose


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass
