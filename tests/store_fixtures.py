"""Stores of images: a web server that fails as networks do, and a server of S3."""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.fs
import pytest
from moto.server import ThreadedMotoServer


class Web:
    """A web server.

    Attributes
    ----------
    url : str
        Of the folder.
    asked : int
        Requests so far.
    drops : callable
        Told the number of a request, says whether the connection is cut off without an answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked = 0
        self.drops: Callable[[int], bool] = lambda _: False
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Count a request, and say whether it is answered."""
        with self._lock:
            self.asked += 1
            number = self.asked
        return not self.drops(number)  # which may take its time


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """Serve a folder on this machine inside the block."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if web.take():
                # Whoever asked may be gone.
                with suppress(ConnectionError):
                    super().do_GET()
            else:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        web = Web(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def in_s3(folder: Path) -> Iterator[str]:
    """Put the files of a folder into a bucket inside the block; gives the URL of their folder there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        host, port = server.get_host_and_port()
        where = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1"
        store, _ = pyarrow.fs.FileSystem.from_uri(f"s3://bucket?{where}&allow_bucket_creation=true")
        store.create_dir("bucket")
        for path in folder.rglob("*"):
            if path.is_file():
                with store.open_output_stream(f"bucket/images/{path.relative_to(folder)}") as file:
                    file.write(path.read_bytes())
        try:
            yield f"s3://bucket/images?{where}"
        finally:
            server.stop()
