"""An S3 server of our own, and a network between a test and it that can be cut."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

CALLS: Counter[str] = Counter()
"""Kind -> requests that a bucket has answered. A test clears it."""

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def bucket() -> Iterator[str]:
    """The URI of a folder in a bucket on moto's server."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    server._server.app = _counting(server._server.app)
    host, port = server.get_host_and_port()
    before = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="w2s")
    yield f"s3://w2s/store?endpoint_override={host}:{port}&scheme=http&allow_bucket_creation=true"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def _counting(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        is_listing = environ["REQUEST_METHOD"] == "GET" and "list-type" in environ["QUERY_STRING"]
        CALLS["LIST" if is_listing else environ["REQUEST_METHOD"]] += 1
        return app(environ, start_response)

    return answer


class Proxy:
    """Passes bytes on to a server until it is told to drop every connection and take no new ones."""

    def __init__(self, uri: str) -> None:
        found = re.search(r"endpoint_override=([^:&]+):(\d+)", uri)
        assert found
        self.server = (found[1], int(found[2]))
        self.listener = self._listen(0)
        self.port = self.listener.getsockname()[1]
        self.uri = uri.replace(f"{found[1]}:{found[2]}", f"127.0.0.1:{self.port}")
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._serve, args=(self.listener,), daemon=True).start()

    @classmethod
    @contextmanager
    def to(cls, uri: str) -> Iterator[Proxy]:
        proxy = cls(uri)
        yield proxy
        proxy.drop()

    def drop(self) -> None:
        for each in (self.listener, *self.connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.connections.clear()

    def restore(self) -> None:
        self.listener = self._listen(self.port)
        threading.Thread(target=self._serve, args=(self.listener,), daemon=True).start()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        return listener

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self.server)
                self.connections += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := one.recv(65536):
                other.sendall(chunk)
        for each in (one, other):
            each.close()
