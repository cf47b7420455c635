"""What uploads and copies in parts have at a store while they are no object yet: noted first, ended by one only."""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence

from cachefs.core.types import Key
from cachefs.remote.store import Ledger


class MemoryLedger:
    """A ledger for as long as the process lives: what it holds is to be ended before that does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, Key] = {}

    def note(self, key: Key, work: str, *, replaces: str | None = None) -> None:
        """Keep *work*."""
        with self._lock:
            if replaces is not None:
                self._keys.pop(replaces, None)
            self._keys[work] = key

    def strike(self, work: str) -> None:
        """Forget *work*."""
        with self._lock:
            self._keys.pop(work, None)

    def noted(self, key: Key) -> Sequence[str]:
        """Return what is noted for *key*."""
        with self._lock:
            return [work for work, of in self._keys.items() if of == key]

    def all(self) -> Sequence[tuple[Key, str]]:
        """Return everything, with its key."""
        with self._lock:
            return [(key, work) for work, key in self._keys.items()]


class KeyedLedger:
    """*ledger*, for a store that has other names for the same keys: *named* returns those of the ledger."""

    def __init__(self, ledger: Ledger, named: Callable[[Key], Key]) -> None:
        self._ledger = ledger
        self._named = named

    def note(self, key: Key, work: str, *, replaces: str | None = None) -> None:
        """As the ledger's."""
        self._ledger.note(self._named(key), work, replaces=replaces)

    def strike(self, work: str) -> None:
        """As the ledger's."""
        self._ledger.strike(work)

    def noted(self, key: Key) -> Sequence[str]:
        """As the ledger's."""
        return self._ledger.noted(self._named(key))


class Works:
    """The works of one store.

    INVARIANT: a work is in the hands of at most one thread, which alone goes on with it or ends it.
    INVARIANT: what may be at the store is in the ledger, from before it can be there until it cannot any more.
    """

    def __init__(self) -> None:
        self._own = MemoryLedger()
        self._ledger: Ledger = self._own
        self._lock = threading.Lock()
        self._held: set[str] = set()

    def keep_in(self, ledger: Ledger) -> None:
        """Note in *ledger* from now on, which outlives this process."""
        self._ledger = ledger

    def forgotten(self) -> Sequence[tuple[Key, str]]:
        """Return what nobody will know of when this process has ended, with the keys."""
        return self._own.all()

    def noted(self, key: Key) -> Sequence[str]:
        """Return what the ledger has for *key*."""
        return self._ledger.noted(key)

    def begin(self, key: Key, work: str) -> None:
        """Note a work that is in our hands."""
        self.take(work)
        self._ledger.note(key, work)

    def amend(self, key: Key, old: str, new: str) -> None:
        """Give a work that is in our hands another name, which tells more."""
        self.take(new)
        self._ledger.note(key, new, replaces=old)
        self.leave(old)

    def take(self, work: str) -> bool:
        """Take a work into our hands. Return whether nobody else has it."""
        with self._lock:
            is_free = work not in self._held
            self._held.add(work)
        return is_free

    def leave(self, work: str) -> None:
        """Let go of a work that is to be continued, or ended, another time."""
        with self._lock:
            self._held.discard(work)

    def end(self, work: str) -> None:
        """Strike a work, of which nothing is left at the store but the object that it has become."""
        self._ledger.strike(work)
        self.leave(work)


def mark_of(md5: str | None, about: Mapping[str, object], sizes: Sequence[int]) -> str:
    """Return what two works have in common exactly if they make the same object in the same parts.

    Empty where nothing tells what the bytes are: such a work is never continued.
    """
    if md5 is None:
        return ""
    text = json.dumps([md5, about, sizes[:1], sum(sizes)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
