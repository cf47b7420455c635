"""The promises made to the store: which entries are dirty, and what became of them.

Only this module writes the tables ``intents``, ``moves``, ``works`` and ``conflicts``. An entry is clean exactly when it
has no row in ``intents``.
"""

import secrets
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from cachefs.core.errors import CacheError
from cachefs.core.intent import Event, Intent, State, move
from cachefs.core.types import EntryId, ETag, Ino, Key, ObjectInfo, Token
from cachefs.local.db import Database

_COLUMNS: Final = "entry, token, state, boot, due_ns, tries, sent, error"
_CONFLICTS_KEPT: Final = 1000


def _intent(row: tuple[Any, ...]) -> Intent:
    return Intent(
        entry=EntryId(row[0]),
        token=Token(row[1]),
        state=State(row[2]),
        boot=row[3],
        due_ns=row[4],
        tries=row[5],
        was_sent=bool(row[6]),
        error=row[7],
    )


def _blob(key: Key) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _key(blob: bytes) -> Key:
    return Key(blob.decode("utf-8", "surrogateescape"))


@dataclass(frozen=True, slots=True)
class Move:
    """One object of a rename."""

    id: int
    batch: str
    state: str
    source: Key
    target: Key
    etag: ETag
    replaces: ETag | None
    made: ETag | None
    """The version of the copy; None: the store has not answered yet."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """One conflict that was met."""

    when_ns: int
    key: Key
    outcome: str


class Journal:
    """Every promise. A promise ends in three ways only: settled, dropped, discarded."""

    def __init__(self, db: Database, *, boot: str) -> None:
        """*boot* is this boot's id: bytes written under it may be in its page cache only."""
        self._db = db
        self._boot = boot

    # ---- intents ----------------------------------------------------------------------------

    def of(self, entry: EntryId) -> Intent | None:
        """Return the promise of an entry, or None: it is clean."""
        row = self._db.one(f"SELECT {_COLUMNS} FROM intents WHERE entry = ?", (entry,))
        return None if row is None else _intent(row)

    def has(self, token: Token) -> bool:
        """Whether there is a promise with that token."""
        return self._db.one("SELECT 1 FROM intents WHERE token = ?", (token,)) is not None

    def is_dirty(self, ino: Ino) -> bool:
        """Whether bytes of the inode are promised."""
        sql = "SELECT 1 FROM entries JOIN intents ON entry = id WHERE ino = ?"
        return self._db.one(sql, (ino,)) is not None

    def all(self) -> list[Intent]:
        """Return every promise, the oldest first."""
        return [
            _intent(row) for row in self._db.all(f"SELECT {_COLUMNS} FROM intents ORDER BY entry")
        ]

    def count(self) -> int:
        """Return how many entries are dirty."""
        row = self._db.one("SELECT count(*) FROM intents")
        return int(row[0]) if row else 0

    def begin(self, entry: EntryId) -> Intent:
        """Promise that the entry's bytes will reach the store. Comes before the first byte changes.

        Of an entry that is promised already, note that it is written again.
        """
        found = self.of(entry)
        if found is None:
            token = Token(secrets.token_hex(16))
            self._db.execute(
                "INSERT INTO intents VALUES (?, ?, 'open', ?, 0, 0, 0, NULL)",
                (entry, token, self._boot),
            )
            return Intent(entry, token, State.OPEN, self._boot, 0, 0, False, None)
        self._move(found, Event.WRITE, boot=self._boot)
        return found

    def restore(self, entry: EntryId, token: Token, *, is_sealed: bool, error: str | None) -> None:
        """Put back a promise that was found beside its bytes, after the database was lost."""
        state = State.QUEUED if is_sealed else State.PARKED
        self._db.execute(
            "INSERT INTO intents VALUES (?, ?, ?, NULL, 0, 0, 1, ?)",
            (entry, token, str(state), error),
        )

    def seal(self, entry: EntryId, *, due_ns: int, is_synced: bool) -> None:
        """Note that the bytes are complete and may be uploaded from *due_ns* on."""
        found = self._must(entry)
        boot = None if is_synced else found.boot
        self._move(found, Event.SEAL, boot=boot, due_ns=due_ns, tries=0)

    def claim(self, entry: EntryId) -> Intent | None:
        """Take the promise up for an upload, or return None if it is not waiting for one."""
        found = self.of(entry)
        if found is None or found.state is not State.QUEUED:
            return None
        self._move(found, Event.CLAIM, sent=1)
        return self.of(entry)

    def next_due(self, *, excluding: Iterable[EntryId] = ()) -> Intent | None:
        """Return the queued promise that is due first, due or not."""
        busy = ",".join(str(int(entry)) for entry in excluding)
        row = self._db.one(
            f"SELECT {_COLUMNS} FROM intents WHERE state = 'queued' AND entry NOT IN ({busy})"
            " ORDER BY due_ns, entry LIMIT 1"
        )
        return None if row is None else _intent(row)

    def uploading(self) -> list[EntryId]:
        """Return the entries of which an upload is under way, or was cut off."""
        rows = self._db.all("SELECT entry FROM intents WHERE state = 'uploading'")
        return [EntryId(row[0]) for row in rows]

    def hurry(self, entry: EntryId, due_ns: int) -> None:
        """Make a queued or parked promise due at *due_ns*."""
        found = self._must(entry)
        if found.state is State.PARKED:
            self._move(found, Event.RETRY, due_ns=due_ns, tries=0)
        elif found.state is State.QUEUED:
            self._db.execute("UPDATE intents SET due_ns = ? WHERE entry = ?", (due_ns, entry))

    def postpone(self, entry: EntryId, *, due_ns: int, error: str) -> None:
        """Put an upload that failed back, to be tried again at *due_ns*."""
        found = self._must(entry)
        self._move(found, Event.FAULT, due_ns=due_ns, tries=found.tries + 1, error=error)

    def requeue(self, entry: EntryId, *, due_ns: int) -> None:
        """Put an upload back that ended without an answer of the store, to be begun anew."""
        self._move(self._must(entry), Event.FAULT, due_ns=due_ns)

    def park(self, entry: EntryId, error: str) -> None:
        """Give up until the operator or another write speaks; the bytes stay, and are shown."""
        self._move(self._must(entry), Event.REFUSE, error=error)

    def settle(self, entry: EntryId) -> None:
        """End a promise: the store has confirmed exactly these bytes."""
        self._end(entry)

    def drop(self, entry: EntryId) -> None:
        """End a promise: the user removed the name."""
        self._end(entry)

    def discard(self, entry: EntryId) -> None:
        """End a promise: the operator gave these bytes up."""
        self._end(entry)

    def _end(self, entry: EntryId) -> None:
        self._db.execute("DELETE FROM intents WHERE entry = ?", (entry,))

    def _must(self, entry: EntryId) -> Intent:
        found = self.of(entry)
        if found is None:
            raise LookupError(f"entry {entry} has no promise")
        return found

    def _move(self, intent: Intent, event: Event, **columns: object) -> None:
        columns["state"] = str(move(intent.state, event))
        names = ", ".join(f"{name} = ?" for name in columns)
        self._db.execute(
            f"UPDATE intents SET {names} WHERE entry = ?", (*columns.values(), intent.entry)
        )

    # ---- renames ----------------------------------------------------------------------------

    def begin_moves(self, moves: Iterable[tuple[Key, Key, ETag, ETag | None]]) -> str:
        """Promise a rename: each of source, target, version of the source, version replaced. Return its batch."""
        batch = uuid.uuid4().hex
        with self._db.transaction():
            self._db.executemany(
                "INSERT INTO moves (batch, state, source, target, etag, replaces)"
                " VALUES (?, 'copying', ?, ?, ?, ?)",
                [(batch, _blob(s), _blob(t), etag, replaces) for s, t, etag, replaces in moves],
            )
        return batch

    def moves(self) -> list[Move]:
        """Return every object of every rename that is under way, in the order they were promised."""
        sql = (
            "SELECT id, batch, state, source, target, etag, replaces, made FROM moves ORDER BY id"
        )
        return [
            Move(row[0], row[1], row[2], _key(row[3]), _key(row[4]), *row[5:])
            for row in self._db.all(sql)
        ]

    def staying(self, objects: Sequence[ObjectInfo]) -> tuple[ObjectInfo, ...]:
        """Return *objects* without those that a rename is about to delete."""
        if self._db.one("SELECT 1 FROM moves LIMIT 1") is None:
            return tuple(objects)  # at once: it is asked for each page of a listing
        return tuple(info for info in objects if not self.is_leaving(info.key))

    def is_leaving(self, key: Key) -> bool:
        """Whether *key* is a source that a rename is about to delete."""
        sql = "SELECT 1 FROM moves WHERE source = ? AND state = 'deleting'"
        return self._db.one(sql, (_blob(key),)) is not None

    def note_copy(self, move_id: int, etag: ETag) -> None:
        """Note which version the copy of one object is, to know it again."""
        self._db.execute("UPDATE moves SET made = ? WHERE id = ?", (etag, move_id))

    def copied(self, batch: str) -> None:
        """Note that every copy of a rename stands: from here it can only go forward."""
        self._db.execute("UPDATE moves SET state = 'deleting' WHERE batch = ?", (batch,))

    def end_move(self, move_id: int) -> None:
        """Note that one object of a rename is where it belongs."""
        self._db.execute("DELETE FROM moves WHERE id = ?", (move_id,))

    # ---- works ------------------------------------------------------------------------------

    def note_work(self, key: Key, work: str, *, replaces: str | None = None) -> bool:
        """Note what a large upload or copy for *key* is about to have at the store; *replaces*: its name so far.

        Return whether the disk had room for it.
        """
        try:
            with self._db.transaction():
                self._db.execute("DELETE FROM works WHERE work = ?", (replaces,))
                self._db.execute(
                    "INSERT OR IGNORE INTO works (key, work) VALUES (?, ?)", (_blob(key), work)
                )
        except CacheError:
            return False
        return True

    def strike_work(self, work: str) -> None:
        """Note that nothing is left of *work* at the store but an object.

        Where the disk has no room for that, it is found out once more another time.
        """
        with suppress(CacheError):
            self._db.execute("DELETE FROM works WHERE work = ?", (work,))

    def works(self) -> list[tuple[Key, str]]:
        """Return every work with its key, the oldest first."""
        rows = self._db.all("SELECT key, work FROM works ORDER BY id")
        return [(_key(row[0]), row[1]) for row in rows]

    def works_of(self, key: Key) -> list[str]:
        """Return the works that are for *key*, the oldest first."""
        rows = self._db.all("SELECT work FROM works WHERE key = ? ORDER BY id", (_blob(key),))
        return [row[0] for row in rows]

    # ---- conflicts --------------------------------------------------------------------------

    def note_conflict(self, key: Key, outcome: str, now_ns: int) -> None:
        """Record a conflict for ``status``; the newest thousand are kept."""
        self._db.execute(
            "INSERT INTO conflicts (when_ns, key, outcome) VALUES (?, ?, ?)",
            (now_ns, _blob(key), outcome),
        )
        self._db.execute(
            "DELETE FROM conflicts WHERE id <= (SELECT max(id) FROM conflicts) - ?",
            (_CONFLICTS_KEPT,),
        )

    def has_conflict(self, key: Key, outcome: str) -> bool:
        """Whether just that was recorded of *key*."""
        sql = "SELECT 1 FROM conflicts WHERE key = ? AND outcome = ? LIMIT 1"
        return self._db.one(sql, (_blob(key), outcome)) is not None

    def conflicts(self) -> list[Conflict]:
        """Return the recorded conflicts, the oldest first."""
        rows = self._db.all("SELECT when_ns, key, outcome FROM conflicts ORDER BY id")
        return [Conflict(row[0], _key(row[1]), row[2]) for row in rows]
