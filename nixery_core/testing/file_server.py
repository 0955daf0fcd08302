"""A web server of files on 127.0.0.1, which can be told to misbehave; for tests."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

import attrs


@attrs.frozen
class Answer:
    """What the server says instead of a file."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    cut_after: int | None = None
    """Break the connection behind so many bytes of the body."""
    before: Callable[[], object] | None = None
    """Called before a word is said: to be slow, for example."""


@attrs.frozen
class Request:
    """What the server was asked."""

    path: str
    """With the query."""
    headers: Mapping[str, str]


class FileServer:
    """Serves *directory* on a free port of 127.0.0.1 for as long as the context lasts.

    Args:
        directory: What is served; ranges are understood.
        answer: Asked first, with the request and how often this path was asked before; None means the file.
    """

    def __init__(self, directory: Path, answer: Callable[[Request, int], Answer | None] | None = None) -> None:
        self.requests: list[Request] = []
        self._directory = directory
        self._answer = answer
        self._lock = threading.Lock()
        self._times: dict[str, int] = {}
        self._server = _Server(("127.0.0.1", 0), self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def asked(self, suffix: str) -> int:
        """Return how many requests there were for paths that end with *suffix*."""
        return sum(request.path.endswith(suffix) for request in self.requests)

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: Request) -> Answer:
        """Return the answer to *request*."""
        with self._lock:
            times = self._times.get(request.path, 0)
            self._times[request.path] = times + 1
            self.requests.append(request)
        scripted = self._answer(request, times) if self._answer is not None else None
        return self._file(request) if scripted is None else scripted

    def _file(self, request: Request) -> Answer:
        path = self._directory / request.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            return Answer(404, b"no such file\n")
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if asked is None:
            return Answer(200, data)
        start = int(asked[1])
        return Answer(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], files: FileServer) -> None:
        self.files = files
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    timeout = 30
    # the client keeps many connections; Nagle's pause would be felt on each
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        answer = self.server.files.answer(Request(self.path, dict(self.headers.items())))
        if answer.before is not None:
            answer.before()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[: answer.cut_after])
        self.wfile.flush()
        if answer.cut_after is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Log nothing."""
