"""A server on loopback, of whatever handler."""

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO


@contextmanager
def answering(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer requests by ``handler`` until the block ends; yields the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def writing(write: Callable[[str, BinaryIO], None]) -> Iterator[str]:
    """Read each request, and let ``write`` write any bytes, by its path and body in one text; yields the address."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            path, length = (*self.rfile.readline().split(), b"", b"")[1], 0
            while line := self.rfile.readline().strip().lower():
                length = int(line.split(b":")[1]) if line.startswith(b"content-length:") else length
            request = path + b" " + self.rfile.read(length)
            with suppress(OSError):  # The client has left.
                write(request.decode(), self.wfile)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close = True, False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
