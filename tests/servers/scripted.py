"""An HTTP server that answers what a test tells it to, garbage included."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import BinaryIO
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


Answer = bytes | None
"""Raw bytes to send before the connection is closed; None: say nothing, and leave it open."""
Handler = Callable[[Request], Answer]


def answer(
    status: int, body: bytes | str = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """A well-formed answer, whose headers *headers* may spoil."""
    content = body.encode() if isinstance(body, str) else body
    fields = {"Content-Length": str(len(content)), "Connection": "close", **(headers or {})}
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return head.encode() + b"\r\n" + content


@dataclass
class Scripted:
    """The running server."""

    url: str
    handler: Handler
    requests: list[Request] = field(default_factory=list)

    def methods(self) -> list[str]:
        """The method of each request so far."""
        return [request.method for request in self.requests]


@contextmanager
def scripted(handler: Handler) -> Iterator[Scripted]:
    """Serve on a free port, one thread for each connection, one request for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Scripted(f"http://127.0.0.1:{listener.getsockname()[1]}", handler)
        ending = threading.Event()
        threads: list[threading.Thread] = []

        def accept() -> None:
            while not ending.is_set():
                with suppress(OSError):
                    connection, _ = listener.accept()
                    thread = threading.Thread(target=_serve, args=(server, connection, ending))
                    thread.start()
                    threads.append(thread)

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield server
        finally:
            ending.set()
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            acceptor.join()
            for thread in threads:
                thread.join()


def _serve(server: Scripted, connection: socket.socket, ending: threading.Event) -> None:
    with connection, connection.makefile("rb") as stream, suppress(OSError):
        connection.settimeout(10)
        request = _read(stream, connection)
        if request is None:
            return
        server.requests.append(request)
        said = server.handler(request)
        if said is None:
            ending.wait(30)
            return
        connection.sendall(said)


def _read(stream: BinaryIO, connection: socket.socket) -> Request | None:
    line = stream.readline().decode("latin-1").split()
    if len(line) != 3:
        return None
    headers: dict[str, str] = {}
    while field_line := stream.readline().decode("latin-1").strip():
        name, _, value = field_line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = int(headers.get("content-length", "0"))
    body = stream.read(length)
    if len(body) < length:
        return None  # cut off by its sender: a store drops it
    parts = urlsplit(line[1])
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return Request(line[0], unquote(parts.path), query, headers, body)
