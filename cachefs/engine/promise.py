"""The promise file beside a dirty entry: what its bytes are owed to, should the database be lost."""

import json
from dataclasses import dataclass

from cachefs.core.types import ETag, Key, Token


@dataclass(frozen=True, slots=True)
class Promise:
    """Where the bytes beside it belong, the version that they grew from, and whether they are complete."""

    key: Key
    base: ETag | None
    token: Token
    is_sealed: bool = False
    check: int | None = None
    """``PieceSums.check`` of the bytes, once they are sealed; None: not told."""

    def encode(self) -> bytes:
        """Return the content of the promise file."""
        return json.dumps(
            {
                "key": self.key,
                "base": self.base,
                "token": self.token,
                "sealed": self.is_sealed,
                "check": self.check,
            },
            ensure_ascii=True,
        ).encode()

    @classmethod
    def decode(cls, text: bytes) -> "Promise":
        """Return what :meth:`encode` wrote. Raise ValueError if it did not."""
        try:
            found = json.loads(text)
            base = None if found["base"] is None else ETag(str(found["base"]))
            check = found.get("check")
            return cls(
                Key(str(found["key"])),
                base,
                Token(str(found["token"])),
                bool(found.get("sealed")),
                None if check is None else int(check),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a promise: {error}") from error
