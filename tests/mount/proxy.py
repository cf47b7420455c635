"""A counting HTTP relay between a mount and its store, which can be told to misbehave.

It changes nothing of what it relays, the Host header least of all: a signature covers the name that the
client used, and the servers check it against the same header.
"""

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from types import TracebackType
from typing import Final, Self
from urllib.parse import unquote, urlsplit

CHUNK: Final = 256 * 1024


class Cut(Exception):
    """The connection to the client ends here, without a word."""


@dataclass(eq=False)
class Exchange:
    """One request and what became of it. The counters grow while the bytes pass."""

    method: str
    target: str
    headers: Mapping[str, str]
    status: int | None = None
    sent: int = 0
    """Body bytes from the client to the store."""
    received: int = 0
    """Body bytes from the store that were handed to the client."""

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> str:
        return urlsplit(self.target).query


class Action:
    """What a rule does with an exchange. This one does nothing."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        """Set when the action has taken hold of an exchange."""
        self.gate = threading.Event()
        """What a holding action waits for."""

    def answer(self, exchange: Exchange) -> bytes | None:
        """A whole answer to give in the store's place, or None to ask the store."""
        return None

    def on_request(self, exchange: Exchange) -> None:
        """Called before the request goes to the store."""

    def on_sent(self, exchange: Exchange, piece: bytes) -> bytes:
        """Called for each piece of the request's body; what is returned is handed on."""
        return piece

    def on_answer(self, exchange: Exchange) -> None:
        """Called when the store has answered, before the client hears of it."""

    def on_head(self, exchange: Exchange, head: bytes) -> bytes:
        """Called with the lines before the answer's body; what is returned is handed on."""
        return head

    def on_body(self, exchange: Exchange, piece: bytes) -> bytes:
        """Called for each piece of the answer's body; what is returned is handed on."""
        return piece


class Answer(Action):
    """Answers in the store's place."""

    def __init__(
        self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        super().__init__()
        self._status = status
        self._headers = dict(headers or {})
        self._body = body

    def answer(self, exchange: Exchange) -> bytes:
        self.reached.set()
        exchange.status = self._status
        body = b"" if exchange.method == "HEAD" else self._body
        headers = {"Content-Length": str(len(body)), "Connection": "close", **self._headers}
        lines = [f"HTTP/1.1 {self._status} Injected", *(f"{k}: {v}" for k, v in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class BlackHole(Action):
    """Takes the request and never answers."""

    def on_request(self, exchange: Exchange) -> None:
        self.reached.set()
        self.gate.wait()
        raise Cut


class Reset(Action):
    """Cuts the connection before the request reaches the store."""

    def on_request(self, exchange: Exchange) -> None:
        self.reached.set()
        raise Cut


class HoldRequest(Action):
    """Keeps the request from the store until the rule is lifted."""

    def on_request(self, exchange: Exchange) -> None:
        self.reached.set()
        self.gate.wait()


class HoldAnswer(Action):
    """Lets the store act, and keeps its answer until the rule is lifted."""

    def on_answer(self, exchange: Exchange) -> None:
        self.reached.set()
        self.gate.wait()


class DropAnswer(Action):
    """Lets the store act, and loses its answer."""

    def on_answer(self, exchange: Exchange) -> None:
        self.reached.set()
        raise Cut


class CutBody(Action):
    """Cuts the connection when that many bytes of the answer's body have passed."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def on_body(self, exchange: Exchange, piece: bytes) -> bytes:
        if exchange.received + len(piece) < self._after:
            return piece
        if exchange.received >= self._after:
            self.reached.set()
            raise Cut
        return piece[: self._after - exchange.received]


class HoldBody(Action):
    """Hands no more on when that many bytes of the answer's body have passed, until the rule is lifted."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def on_body(self, exchange: Exchange, piece: bytes) -> bytes:
        if exchange.received + len(piece) > self._after:
            self.reached.set()
            self.gate.wait()
        return piece


class FlipBit(Action):
    """Changes one bit of the answer's body on its way."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def on_body(self, exchange: Exchange, piece: bytes) -> bytes:
        place = self._at - exchange.received
        if not 0 <= place < len(piece):
            return piece
        self.reached.set()
        return piece[:place] + bytes([piece[place] ^ 1]) + piece[place + 1 :]


class FlipSentBit(Action):
    """Changes one bit of the request's body on its way."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def on_sent(self, exchange: Exchange, piece: bytes) -> bytes:
        place = self._at - exchange.sent
        if not 0 <= place < len(piece):
            return piece
        self.reached.set()
        return piece[:place] + bytes([piece[place] ^ 1]) + piece[place + 1 :]


class HoldSent(Action):
    """Keeps the request's body back when that many bytes of it have passed, until the rule is lifted."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def on_sent(self, exchange: Exchange, piece: bytes) -> bytes:
        if exchange.sent + len(piece) >= self._after:
            self.reached.set()
            self.gate.wait()
        return piece


class WrongLength(Action):
    """Says of an answer without a body (to HEAD) that it would have another length."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._line = b"Content-Length: %d\r\n" % length

    def on_head(self, exchange: Exchange, head: bytes) -> bytes:
        self.reached.set()
        lines = head.splitlines(keepends=True)
        kept = [line for line in lines if not line.lower().startswith(b"content-length:")]
        return b"".join([kept[0], self._line, *kept[1:]])


class Slow(Action):
    """Hands on so many bytes in a second, on all connections together."""

    def __init__(self, bytes_per_s: int) -> None:
        super().__init__()
        self._rate = bytes_per_s
        self._lock = threading.Lock()
        self._free_at = 0.0

    def on_body(self, exchange: Exchange, piece: bytes) -> bytes:
        with self._lock:
            start = max(time.monotonic(), self._free_at)
            self._free_at = start + len(piece) / self._rate
            pause = self._free_at - time.monotonic()
        self.gate.wait(max(pause, 0))
        return piece


@dataclass(eq=False)
class Rule:
    """An action and the exchanges it is for."""

    matches: Callable[[Exchange], bool]
    action: Action
    times: int | None = None
    """How many exchanges at most; None: all."""
    hits: int = 0

    def lift(self) -> None:
        """Stop acting, and let go of whatever is held."""
        self.times = self.hits
        self.action.gate.set()

    def wait_reached(self, timeout_s: float = 30) -> None:
        """Return when the action has taken hold of an exchange."""
        assert self.action.reached.wait(timeout_s), "no request came that the rule is for"


@dataclass(frozen=True)
class _Head:
    raw: bytes
    words: tuple[str, ...]
    headers: Mapping[str, str]

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def length(self) -> int | None:
        text = self.headers.get("content-length")
        return None if text is None else int(text)


@dataclass(eq=False)
class _Ends:
    """The two connections of one client, the far one opened when it is needed."""

    client: socket.socket
    reader: BufferedReader
    upstream: socket.socket | None = None
    upstream_reader: BufferedReader | None = None
    closers: list[socket.socket] = field(default_factory=list)


class Proxy:
    """Listens on a free port of loopback, and relays to *host*:*port*."""

    def __init__(self, host: str, port: int) -> None:
        self._far = (host, port)
        self._port = 0
        self._lock = threading.Lock()
        self._exchanges: list[Exchange] = []
        self._rules: list[Rule] = []
        self._sockets: set[socket.socket] = set()
        self.ignored: frozenset[str] = frozenset()
        """Headers, in lower case, that no request brings to the store: it might as well not know them."""
        self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        """Let go of what is held, cut what is there, and refuse connections from now on."""
        self.lift_all()
        self.refuse()

    def lift_all(self) -> None:
        """Relay everything from now on, and let go of what is held."""
        for rule in self._rules:
            rule.lift()

    def refuse(self) -> None:
        """Cut what is there, and refuse connections, until :meth:`relay_again`."""
        self._shut(self._listener)
        with self._lock:
            left = list(self._sockets)
        for one in left:
            self._shut(one)

    def relay_again(self) -> None:
        """Listen on the same port as before."""
        self._listen()

    def on(
        self, matches: Callable[[Exchange], bool], action: Action, *, times: int | None = None
    ) -> Rule:
        """From now on, do *action* with the exchanges that match. The newest rule is asked first."""
        rule = Rule(matches, action, times)
        with self._lock:
            self._rules.insert(0, rule)
        return rule

    @contextlib.contextmanager
    def during(
        self, matches: Callable[[Exchange], bool], action: Action, *, times: int | None = None
    ) -> Iterator[Rule]:
        """As :meth:`on`, for the length of a ``with`` block."""
        rule = self.on(matches, action, times=times)
        try:
            yield rule
        finally:
            rule.lift()

    def exchanges(self) -> list[Exchange]:
        """All that was asked since the start or the last :meth:`forget`."""
        with self._lock:
            return list(self._exchanges)

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self._exchanges.clear()

    # ---- the relay itself

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self._port), backlog=128)
        self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(
            target=self._accept, args=(listener,), name="proxy-accept", daemon=True
        ).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._adopt(client)
            threading.Thread(target=self._serve, args=(client,), name="proxy", daemon=True).start()

    def _adopt(self, one: socket.socket) -> None:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets.add(one)

    @staticmethod
    def _shut(one: socket.socket) -> None:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()

    def _serve(self, client: socket.socket) -> None:
        ends = _Ends(client, _reader(client), closers=[client])
        try:
            while self._relay_one(ends):
                pass
        except Cut:
            # A reset, not an orderly end: what a client behind a broken network sees.
            with contextlib.suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (OSError, ValueError):
            pass
        finally:
            ends.reader.close()
            if ends.upstream_reader is not None:
                ends.upstream_reader.close()
            for one in ends.closers:
                with self._lock:
                    self._sockets.discard(one)
                self._close_side(one)

    @staticmethod
    def _close_side(one: socket.socket) -> None:
        # Not shut down first: that would send the orderly end which a cut must not send.
        one.close()

    def _relay_one(self, ends: _Ends) -> bool:
        head = _read_head(ends.reader)
        if head is None:
            return False
        exchange = Exchange(head.words[0], head.words[1], head.headers)
        with self._lock:
            self._exchanges.append(exchange)
            action = self._choose(exchange)
        answer = action.answer(exchange)
        if answer is not None:
            return self._answer(ends, head, exchange, answer)
        action.on_request(exchange)
        far, far_reader = self._upstream(ends)
        far.sendall(_without(head.raw, self.ignored))
        reply = self._send_body(ends, head, exchange, action, far, far_reader)
        if reply is None:
            reply = _read_head(far_reader)
        # A server may say "continue" more than once, and also when nobody asked it to.
        while reply is not None and reply.words[1].startswith("1"):
            ends.client.sendall(reply.raw)
            reply = _read_head(far_reader)
        if reply is None:
            raise Cut
        exchange.status = int(reply.words[1])
        action.on_answer(exchange)
        ends.client.sendall(action.on_head(exchange, reply.raw))
        self._hand_back(ends, reply, exchange, action, far_reader)
        keep = "close" not in reply.headers.get("connection", "").lower()
        return keep and (reply.length is not None or reply.chunked or _bodiless(exchange))

    def _choose(self, exchange: Exchange) -> Action:
        for rule in self._rules:
            if (rule.times is None or rule.hits < rule.times) and rule.matches(exchange):
                rule.hits += 1
                return rule.action
        return Action()

    @staticmethod
    def _answer(ends: _Ends, head: _Head, exchange: Exchange, answer: bytes) -> bool:
        if "100-continue" not in head.headers.get("expect", "").lower():
            for piece in _body(ends.reader, head, none=head.length is None and not head.chunked):
                exchange.sent += len(piece)
        ends.client.sendall(answer)
        return False

    def _upstream(self, ends: _Ends) -> tuple[socket.socket, BufferedReader]:
        if ends.upstream is not None and select.select([ends.upstream], [], [], 0)[0]:
            ends.upstream = None  # the server closed it while nothing was asked
            if ends.upstream_reader is not None:
                ends.upstream_reader.close()
        if ends.upstream is None or ends.upstream_reader is None:
            ends.upstream = socket.create_connection(self._far, timeout=120)
            self._adopt(ends.upstream)
            ends.closers.append(ends.upstream)
            ends.upstream_reader = _reader(ends.upstream)
        return ends.upstream, ends.upstream_reader

    @staticmethod
    def _send_body(
        ends: _Ends,
        head: _Head,
        exchange: Exchange,
        action: Action,
        far: socket.socket,
        far_reader: BufferedReader,
    ) -> _Head | None:
        """Relay the request's body. Returns the answer if the store gave it without wanting the body."""
        if "100-continue" in head.headers.get("expect", "").lower():
            reply = _read_head(far_reader)
            if reply is None:
                raise Cut
            if reply.words[1] != "100":
                return reply
            ends.client.sendall(reply.raw)
        for piece in _body(ends.reader, head, none=head.length is None and not head.chunked):
            passed = action.on_sent(exchange, piece)
            exchange.sent += len(piece)
            far.sendall(_framed(passed) if head.chunked else passed)
        if head.chunked:
            far.sendall(b"0\r\n\r\n")
        return None

    @staticmethod
    def _hand_back(
        ends: _Ends, reply: _Head, exchange: Exchange, action: Action, far_reader: BufferedReader
    ) -> None:
        for piece in _body(far_reader, reply, none=_bodiless(exchange)):
            passed = action.on_body(exchange, piece)
            ends.client.sendall(_framed(passed) if reply.chunked else passed)
            exchange.received += len(passed)
        if reply.chunked and not _bodiless(exchange):
            ends.client.sendall(b"0\r\n\r\n")


def _reader(one: socket.socket) -> BufferedReader:
    reader = one.makefile("rb", buffering=CHUNK)
    assert isinstance(reader, BufferedReader)
    return reader


def _bodiless(exchange: Exchange) -> bool:
    return exchange.method == "HEAD" or exchange.status in {204, 304}


def _without(raw: bytes, ignored: frozenset[str]) -> bytes:
    lines = raw.splitlines(keepends=True)
    return b"".join(
        line for line in lines if line.partition(b":")[0].decode("latin-1").lower() not in ignored
    )


def _framed(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _read_head(reader: BufferedReader) -> _Head | None:
    lines: list[bytes] = []
    while True:
        line = reader.readline()
        if not line:
            return None
        lines.append(line)
        if line in {b"\r\n", b"\n"} and len(lines) > 1:
            break
    headers: dict[str, str] = {}
    for line in lines[1:-1]:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return _Head(b"".join(lines), tuple(lines[0].decode("latin-1").split(None, 2)), headers)


def _body(reader: BufferedReader, head: _Head, *, none: bool) -> Iterator[bytes]:
    if none:
        return
    if head.chunked:
        yield from _chunked(reader)
        return
    left = head.length
    while left is None or left > 0:
        piece = reader.read1(CHUNK if left is None else min(left, CHUNK))
        if not piece:
            if left is not None:
                raise Cut
            return
        if left is not None:
            left -= len(piece)
        yield piece


def _chunked(reader: BufferedReader) -> Iterator[bytes]:
    while size := int(reader.readline().split(b";")[0], 16):
        piece = reader.read(size)
        reader.readline()
        yield piece
    while reader.readline() not in {b"\r\n", b"\n", b""}:
        pass
