"""The promise file beside a dirty entry: what its bytes are owed to, should the database be lost."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cachefs.core.intent import Intent
from cachefs.core.types import ETag, Key, Token
from cachefs.local.cache import Entry


@dataclass(frozen=True, slots=True)
class Promise:
    """Where the bytes beside it belong, the version that they grew from, and whether they are complete."""

    key: Key
    base: ETag | None
    token: Token
    is_sealed: bool = False
    check: int | None = None
    """``PieceSums.check`` of the bytes, once they are sealed; None: not told."""
    target: Key | None = None
    """Where a rename that is under way takes them."""

    def encode(self) -> bytes:
        """Return the content of the promise file."""
        return json.dumps(
            {
                "key": self.key,
                "base": self.base,
                "token": self.token,
                "sealed": self.is_sealed,
                "check": self.check,
                "target": self.target,
            },
            ensure_ascii=True,
        ).encode()

    @classmethod
    def decode(cls, text: bytes) -> "Promise":
        """Return what :meth:`encode` wrote. Raise ValueError if it did not."""
        try:
            found = json.loads(text)
            return cls(
                Key(_text(found["key"])),
                None if found["base"] is None else ETag(_text(found["base"])),
                Token(_text(found["token"])),
                found.get("sealed") is True,
                _sum(found.get("check")),
                None if found.get("target") is None else Key(_text(found["target"])),
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a promise: {error!r}") from error


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("a text is wanted")
    value.encode("utf-8", "surrogateescape")  # or it could be no key: raises ValueError
    return value


def _sum(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise TypeError("a number is wanted")


def read_promise(path: Path) -> Promise | None:
    """Return the promise in a file; None if there is none, or none that can be read. Blocks; any thread."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            return Promise.decode(file.read())
    except (OSError, ValueError):
        return None


def restated(key: Key, entry: Entry, intent: Intent, *, target: Key | None = None) -> Promise:
    """Return the promise of an entry as its rows tell it, for the *key* that it has now."""
    return Promise(
        key,
        entry.etag,
        intent.token,
        is_sealed=intent.boot is None,
        check=entry.sums.check if entry.sums else None,
        target=target,
    )
