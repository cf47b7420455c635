"""Answers to the reading of an object that are not what they say they are."""

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from tests.mount.proxy import Action, Answer, Exchange

_ERROR: Final = (
    b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>no</Message></Error>"
)


@dataclass(frozen=True)
class Reply:
    """A true answer to a request for a range of *content*, which a lie makes another of."""

    content: bytes
    start: int
    stop: int
    status: int = 206
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def but(self, status: int | None = None, body: bytes | None = None, **headers: str) -> "Reply":
        """The same, with other words."""
        spelled = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(
            self,
            status=status or self.status,
            headers=self.headers | spelled,
            body=self.body if body is None else body,
        )


def _true(content: bytes, exchange: Exchange) -> Reply:
    first, _, last = exchange.headers["range"].removeprefix("bytes=").partition("-")
    start, stop = int(first), min(int(last) + 1, len(content))
    return Reply(
        *(content, start, stop),
        headers={
            "ETag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"',
            "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}",
            "Content-Type": "application/octet-stream",
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            "X-Timestamp": "1767225600.00000",
        },
        body=content[start:stop],
    )


def _flipped(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


def _without_range(reply: Reply) -> Reply:
    headers = {name: value for name, value in reply.headers.items() if name != "Content-Range"}
    return replace(reply, headers=headers)


def _elsewhere(reply: Reply) -> Reply:
    span = f"bytes {reply.start + 1}-{reply.stop}/{len(reply.content) + 1}"
    return reply.but(body=reply.body[1:] + b"x", Content_Range=span)


Lie = Callable[[Reply], Reply]

LIES: Final[dict[str, Lie]] = {
    "an error that calls itself a success": lambda reply: Reply(
        reply.content, 0, 0, 200, {"Content-Type": "application/xml"}, _ERROR
    ),
    "an empty ETag": lambda reply: reply.but(ETag=""),
    "another ETag": lambda reply: reply.but(ETag=f'"{"0" * 32}"'),
    "a shorter body": lambda reply: reply.but(body=reply.body[:-1]),
    "a shorter body and range": lambda reply: reply.but(
        body=reply.body[:-1],
        Content_Range=f"bytes {reply.start}-{reply.stop - 2}/{len(reply.content)}",
    ),
    "a longer body": lambda reply: reply.but(body=reply.body + b"x"),
    "a body that ends early": lambda reply: reply.but(
        body=reply.body[:-1], Content_Length=str(len(reply.body))
    ),
    "a length that is too large": lambda reply: reply.but(
        Content_Length=str(len(reply.body) + 10)
    ),
    "compressed": lambda reply: reply.but(body=gzip.compress(reply.body), Content_Encoding="gzip"),
    "another range": _elsewhere,
    "another size of the object": lambda reply: reply.but(
        Content_Range=f"bytes {reply.start}-{reply.stop - 1}/{len(reply.content) + 1}"
    ),
    "a flipped bit": lambda reply: reply.but(body=_flipped(reply.body)),
}
"""What may be wrong with an answer, whatever is asked for."""

PARTIAL_LIES: Final[dict[str, Lie]] = {
    **{name: lie for name, lie in LIES.items() if name != "a flipped bit"},
    "the whole": lambda reply: _without_range(reply.but(200, reply.content)),
}
"""What shows in an answer to the request for a part of an object."""


class Lying(Action):
    """Answers in the store's place, as it would of the object *content*, but for the lie."""

    def __init__(self, content: bytes, lie: Lie) -> None:
        super().__init__()
        self._content = content
        self._lie = lie

    def answer(self, exchange: Exchange) -> bytes:
        self.reached.set()
        said = self._lie(_true(self._content, exchange))
        return Answer(said.status, said.headers, said.body).answer(exchange)
