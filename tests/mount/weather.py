"""Bad weather between a mount and its store: what goes wrong, and when, follows from a seed."""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Final

from tests.mount.proxy import (
    Action,
    Answer,
    BlackHole,
    CutBody,
    DropAnswer,
    Exchange,
    FlipBit,
    HoldAnswer,
    HoldRequest,
    Proxy,
    Reset,
    Rule,
)

_ERROR_BODY: Final = (
    b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>said late</Message></Error>"
)
_XML: Final = {"Content-Type": "application/xml"}

KINDS: Final[dict[str, Callable[[random.Random], Action]]] = {
    "500": lambda _: Answer(500, _XML, _ERROR_BODY),
    "502": lambda _: Answer(502),
    "503 with Retry-After": lambda _: Answer(503, {"Retry-After": "1"}),
    "429": lambda _: Answer(429, {"Retry-After": "0"}),
    "reset": lambda _: Reset(),
    "lost answer": lambda _: DropAnswer(),
    "cut body": lambda chance: CutBody(chance.randrange(1, 30_000)),
    "flipped bit": lambda chance: FlipBit(chance.randrange(3_000)),
    "slow request": lambda _: HoldRequest(),
    "slow answer": lambda _: HoldAnswer(),
    "black hole": lambda _: BlackHole(),
}
"""Every kind of bad weather by name. Slow ones last until the weather clears, or a moment before."""

_SUBJECTS: Final[dict[str, Callable[[Exchange], bool]]] = {
    "reads": lambda exchange: exchange.method == "GET",
    "questions": lambda exchange: exchange.method == "HEAD",
    "changes": lambda exchange: exchange.method in {"PUT", "POST", "DELETE", "COPY"},
    "all": lambda _: True,
}
_UNFIT: Final = {("flipped bit", subject) for subject in ("questions", "changes", "all")}
"""A bit of a listing that flips may make another, valid listing: no client can tell."""


@contextlib.contextmanager
def weather(proxy: Proxy, chance: random.Random) -> Iterator[str]:
    """Let one to three things go wrong, each a few times, while the block runs. Yields them in words."""
    spells: list[str] = []
    rules: list[Rule] = []
    timers: list[threading.Timer] = []
    for _ in range(chance.randint(1, 3)):
        kind, subject = chance.choice(list(KINDS)), chance.choice(list(_SUBJECTS))
        if (kind, subject) in _UNFIT:
            subject = "reads"
        times, clears_s = chance.randint(1, 4), chance.uniform(0.05, 1.5)
        matches = _SUBJECTS[subject]
        rule = proxy.on(
            _unless_listing(matches) if kind == "flipped bit" else matches,
            KINDS[kind](chance),
            times=times,
        )
        spells.append(f"{kind} of {subject}, {times} times")
        rules.append(rule)
        timers.append(threading.Timer(clears_s, rule.lift))
    if chance.random() < 0.1:
        spells.append("refused connections")
        proxy.refuse()
        timers.append(threading.Timer(chance.uniform(0.05, 1.0), proxy.relay_again))
    for timer in timers:
        timer.start()
    try:
        yield "; ".join(spells)
    finally:
        for timer in timers:
            timer.join()  # what is held is let go before the next weather, and the port is open again
        for rule in rules:
            rule.lift()


def _unless_listing(matches: Callable[[Exchange], bool]) -> Callable[[Exchange], bool]:
    return lambda exchange: matches(exchange) and not _is_listing(exchange)


def _is_listing(exchange: Exchange) -> bool:
    return any(word in exchange.query for word in ("list-type", "prefix=", "format=json"))
