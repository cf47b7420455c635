"""What an adapter says of the versions that it writes where the store cannot hold two writers apart."""

import secrets
import threading
from collections.abc import Mapping
from typing import Final

from cachetools import TTLCache

from cachefs.core import descent
from cachefs.core.types import Key, ObjectInfo

_KEPT: Final = 4096
_KEPT_S: Final = 3600


class Lines:
    """The lines (:mod:`cachefs.core.descent`) of what one client of a store writes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # What is made anew where we have removed something was made in the knowledge of that.
        self._removed: TTLCache[Key, descent.Line] = TTLCache(_KEPT, _KEPT_S)

    def removed(self, key: Key, there: ObjectInfo) -> None:
        """Note that this client is about to remove the version *there*."""
        with self._lock:
            self._removed[key] = descent.line_of(there)

    def grown(
        self, key: Key, meta: Mapping[str, str], size: int, there: ObjectInfo | None
    ) -> dict[str, str]:
        """Return *meta* with the line of a version of *size* bytes that replaces *there* (None: nothing is there)."""
        if key.endswith("/"):
            return dict(meta)  # a marker has no content to lose
        with self._lock:
            before = self._removed.get(key, ()) if there is None else descent.line_of(there)
        return descent.grown(meta, size, before, secrets.token_hex(descent.ID_BYTES))
