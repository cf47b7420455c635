"""Files by the hash of their bytes: in a storage on this machine as long as there is room, and uploaded.

::

    from cachefs import CloudManager

    with CloudManager("/srv/files.sqlite3", "/srv/storage", 20 * 2**30, remotes=["s3://archive"]) as cm:
        digest = cm.upload("/path/to/file")
        cm.cloud_sync()
        path = cm.warm_up(digest)

The database has what is known of each file and where its copies live; the storage has the bytes of some. Any number
of threads and processes may use the same database and storage at once, with the same capacity and remotes.
"""

import hashlib
import json
import logging
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, Literal

from cachefs.cloud import dumps
from cachefs.cloud.mounted import Place, place_of
from cachefs.cloud.remotes import Remote
from cachefs.cloud.shelf import Shelf
from cachefs.cloud.storage import OwnStorage, Storage, Target
from cachefs.config import current
from cachefs.core.closing import Closing
from cachefs.core.errors import (
    CacheError,
    CachefsError,
    Changed,
    Fault,
    NotFound,
    Refused,
    StoreError,
    UsageError,
)
from cachefs.core.removal import fits
from cachefs.core.types import ETag
from cachefs.local.catalogue import Catalogue, Copy, Known, Stored
from cachefs.local.holdings import Holdings, Part
from cachefs.remote import deadline
from cachefs.remote.store import UploadStopped

__all__ = ["CloudManager"]

_CHUNK: Final = 2**20
_PAGE: Final = 100
_FIRST_PATIENCE_S: Final = 5.0
"""How long a remote may keep one waiting that can have the bytes from another."""
_AGAIN_S: Final = 30.0
_TIMEOUT_S: Final = 60.0

_log = logging.getLogger(__name__)


class CloudManager(Closing):
    """A pool of files that are uploaded to one or several remotes, some of which are kept here for faster retrieval.

    Files are named by the SHA-256 of their bytes, in hexadecimal. The same bytes are kept, and uploaded, once.
    """

    def __init__(
        self,
        database_path: str | os.PathLike[str],
        storage_path: str | os.PathLike[str],
        storage_size: int,
        *,
        remotes: Sequence[str] | None = None,
        copies: int = 1,
        timeout_s: float | None = None,
        background: bool = False,
    ) -> None:
        """Open, or make, the database and the storage, which never takes more than *storage_size* bytes.

        A storage that lies in a running mount is kept in the cache of that mount, whose bucket is the first remote then.
        *remotes* are where files are uploaded to, each to all of them: ``s3://BUCKET[/PREFIX]``,
        ``swift://CONTAINER``, ``file:///DIRECTORY``, ``NAME:BUCKET`` of the configuration file; they are asked for
        nothing yet. None: a directory beside the database, which is made; in a mount: none beside it. *copies*: of how many remotes a file must
        be before it may be removed from the storage. *timeout_s*: how long a remote that does not answer is waited
        for; None: as configured (60). *background*: upload what waits in a thread, as it comes.

        What programs left behind that were killed is put in order. Raise ``UsageError`` for what makes no sense.
        """
        database = Path(os.fspath(database_path))
        storage = Path(os.path.abspath(storage_path))
        if storage_size < 1 or isinstance(storage_size, bool):
            raise UsageError("the capacity must be a number of bytes")
        _make_parent(database)
        self._catalogue = Catalogue(database)
        try:
            place = place_of(storage, current())
            if remotes is None:
                remotes = [self._beside(database)] if place is None else []
            self._remotes = _configured(remotes, timeout_s)
            self._timeout_s = max(
                (each.timeout_s for each in self._remotes.values()),
                default=timeout_s or _TIMEOUT_S,
            )
            self._storage = self._stored_in(place or storage, storage_size, copies)
            self._storage.make_room(0)  # the capacity may have been larger
        except BaseException:
            self._catalogue.close()
            raise
        self._is_closed = False
        self._kick = threading.Event()
        self._thread: threading.Thread | None = None
        _survive_forks(self)
        if background:
            self._thread = threading.Thread(
                target=self._upload_on, name="cloudmanager-upload", daemon=True
            )
            self._kick.set()
            self._thread.start()

    def _beside(self, database: Path) -> str:
        """Return the remote that there is where none is named: a directory beside the database, made at first."""
        directory = Path(f"{os.path.abspath(database)}.remote")
        name = f"file://{directory}"
        if not self._catalogue.number("SELECT COUNT(*) FROM copies WHERE remote = ?", (name,)):
            # Once it has had files it is not made again: an empty one in its place would hide that they are gone.
            directory.mkdir(mode=0o700, exist_ok=True)
        return name

    def _stored_in(self, where: Path | Place, capacity: int, copies: int) -> Storage:
        names = [*([where.name] if isinstance(where, Place) else []), *self._remotes]
        if not names:
            raise UsageError("there must be a remote at least")
        if len(set(names)) < len(names):
            raise UsageError("each remote can be named once")
        if not 1 <= copies <= len(names):
            raise UsageError(f"copies must be from 1 to the number of remotes, {len(names)}")
        stored = Stored(self._catalogue, names, copies)
        if isinstance(where, Path):
            holdings = Holdings(self._catalogue, where, capacity, stored)
            return OwnStorage(holdings, self._timeout_s)
        return Shelf(
            self._catalogue,
            where,
            capacity,
            stored,
            timeout_s=self._timeout_s,
            has_others=bool(self._remotes),
        )

    # ---- files ------------------------------------------------------------------------------

    def upload(self, file_path: str | os.PathLike[str]) -> str | Literal[False]:
        """Copy a file into the storage, to be uploaded, and return its hash; False if there is no room for it.

        When this returns the copy is durable. A file that is there already is not copied again. Where room lacks
        because files wait that were not uploaded yet, they are uploaded first. Raise ``OSError`` if the file cannot
        be read, ``Stale`` if it is changed meanwhile.
        """
        with _opened(file_path) as file:
            size = os.fstat(file.fileno()).st_size
            digest = _hash_of(file, size)
            known = Known(digest, Path(file_path).name, size, time.time_ns(), None)
            if self._storage.verified(known):
                return digest
            is_taken = self._storage.take_in(file, known)
            if not is_taken and fits(size, self.capacity()) and self.upload_queue_info()["count"]:
                self.cloud_sync()
                is_taken = self._storage.take_in(file, known)
        self._kick.set()
        return digest if is_taken or self._storage.is_stored(digest) else False

    def warm_up(self, file_hash: str) -> str | Literal[False] | None:
        """Have a file in the storage, and return its path there.

        None: no such file is known. False: there is no room for it, or its only copy was damaged here before it was
        uploaded. The bytes are verified when they come in, and again when anything has touched the file: a copy that
        is not what the hash says is refused, noted for :meth:`cloud_sync` to replace, and another one used.

        The path stays until room is needed; who has opened it can read it for as long as they like. It must not be
        written. Raise the ``StoreError`` of a remote if none could be asked, ``NotFound`` if none has the bytes.
        """
        known = self._known(file_hash)
        if known is None:
            return None
        if (path := self._storage.path(known)) is not None:
            return str(path)
        if not self._sources(known) and not self._storage.may_have(known):
            if self._is_held(known):
                _log.error("%s was damaged in the storage before it was uploaded", known.hash)
            return False
        path = self._storage.fetch(known, lambda part: self._fetch_into(part, known))
        return str(path) if path is not None else False

    def download(self, file_hash: str) -> str | Literal[False] | None:
        """Do the same as :meth:`warm_up`."""
        return self.warm_up(file_hash)

    def exists(self, file_hash: str) -> bool:
        """Whether a file is known: it was uploaded once, or loaded from a dump."""
        return self._known(file_hash) is not None

    def on_cache(self, file_hash: str) -> bool:
        """Whether the storage has the file now."""
        known = self._known(file_hash)
        return known is not None and self._storage.has(known.hash)

    def info(self, file_hash: str) -> dict[str, object] | None:
        """Return what is known of a file: as in a dump, with ``on_cache`` and ``uploaded`` beside. None: nothing."""
        known = self._known(file_hash)
        if known is None:
            return None
        return {
            **self._payload(known),
            "on_cache": self._storage.has(known.hash),
            "uploaded": self._storage.is_stored(known.hash),
        }

    def _known(self, digest: str) -> Known | None:
        return self._catalogue.known(digest.lower())

    def _is_held(self, known: Known) -> bool:
        return bool(self._catalogue.all("SELECT 1 FROM held WHERE hash = ?", (known.hash,)))

    # ---- room -------------------------------------------------------------------------------

    def capacity(self) -> int:
        """Return how many bytes the storage may have."""
        return self._storage.capacity

    def used_space(self) -> int:
        """Return how many bytes of it are taken."""
        return self._storage.used()

    def usage_ratio(self) -> float:
        """Return the taken part of the storage, from 0.0 to 1.0."""
        return self.used_space() / self.capacity()

    def make_room_for(self, size: int) -> bool:
        """Remove files from the storage until *size* bytes are free, and return whether they are.

        Only files that are uploaded are removed: of those that are as large as what lacks the smallest, or, if there
        is none, smaller ones, the largest first. If all of them would not be enough none is removed. A file may take
        nine tenths of the capacity at most.
        """
        return self._storage.make_room(size)

    # ---- uploads ----------------------------------------------------------------------------

    def cloud_sync(self) -> bool:
        """Bring every file to every remote that lacks it, and return whether all is there now.

        A file that the storage does not have any more is fetched from another remote for it. A remote that fails is
        left alone for the rest of the call; :meth:`sync_status` tells why. What another thread or process is
        uploading is left to it.
        """
        with suppress(UploadStopped):  # closed meanwhile
            for target, bring in self._targets():
                try:
                    self._bring_all(target, bring)
                except (Fault, Refused) as error:
                    target.error = str(error)
                    _log.warning("not uploaded to %s: %s", target.name, error)
        return self.upload_queue_info()["count"] == 0

    def _targets(self) -> Iterator[tuple[Target, Callable[[Known], None]]]:
        """Yield each remote, with what brings a file to it."""
        if (own := self._storage.remote) is not None:
            yield own, self._settle
        for remote in self._remotes.values():
            yield remote, partial(self._bring, remote)

    def _bring_all(self, target: Target, bring: Callable[[Known], None]) -> None:
        after = (-1, "")
        while files := self._catalogue.lacking(target.name, after, _PAGE):
            for known in files:
                if self._is_closed:
                    return
                after = (known.added_ns, known.hash)
                try:
                    bring(known)
                except (CacheError, NotFound, Changed) as error:
                    _log.warning("%s is not uploaded to %s: %s", known.hash, target.name, error)
        target.error = None

    def _settle(self, known: Known) -> None:
        """Have a file at the remote to which the storage uploads by itself."""
        if not self._storage.verified(known) and not self._storage.may_have(known):
            self._have(known)
        self._storage.settle(known)

    def _bring(self, remote: Remote, known: Known) -> None:
        if not self._storage.verified(known):
            self._have(known)
        with self._storage.claimed(known) as file:
            if file is not None and not any(
                copy.remote == remote.name and copy.state == "stored"
                for copy in self._catalogue.copies(known.hash)
            ):
                etag, was_sent = remote.put(known, file)
                if was_sent:
                    self._catalogue.count_traffic(_month(), "outgoing", known.size)
                self._note(known, remote, etag, "stored")

    def _have(self, known: Known) -> None:
        """Fetch a file for a remote that lacks it. Whatever goes wrong is no fault of that remote."""
        if not self._sources(known) and not self._storage.may_have(known):
            raise _NotHad("its bytes are nowhere")
        try:
            path = self._storage.fetch(known, lambda part: self._fetch_into(part, known))
        except StoreError as error:
            raise _NotHad(f"it cannot be had from the others: {error}") from error
        if path is None:
            raise _NotHad("there is no room to fetch it from another remote")

    def upload_queue_info(self) -> dict[str, int]:
        """Return ``count`` and ``size`` (in bytes) of the files that some remote does not have yet."""
        count, size = self._catalogue.lacking_any([target.name for target, _ in self._targets()])
        return {"size": size, "count": count}

    def sync_status(self) -> dict[str, object]:
        """Return how many files there are, how many wait, and of each remote what it has and why it failed last."""
        return {
            "files": self._catalogue.number("SELECT COUNT(*) FROM files"),
            "on_cache": self._catalogue.number("SELECT COUNT(*) FROM held"),
            "waiting": self.upload_queue_info(),
            "remotes": {
                target.name: {**self._catalogue.states(target.name), "error": target.error}
                for target, _ in self._targets()
            },
        }

    def _upload_on(self) -> None:
        """Upload what waits, again and again, until closed."""
        is_done = True
        while not self._is_closed:
            self._kick.wait(None if is_done else _AGAIN_S)
            self._kick.clear()
            try:
                is_done = self.cloud_sync()
            except CachefsError as error:
                is_done = False
                if not self._is_closed:
                    _log.warning("uploads wait: %s", error)

    # ---- fetching ---------------------------------------------------------------------------

    def _sources(self, known: Known) -> list[Copy]:
        """Return the copies that can be read, of the remotes first that have not failed."""
        targets = {target.name: target for target, _ in self._targets()}
        copies = [
            copy
            for copy in self._catalogue.copies(known.hash)
            if copy.state in ("stored", "said") and copy.remote in targets
        ]
        order = list(targets)
        return sorted(
            copies,
            key=lambda copy: (targets[copy.remote].error is not None, order.index(copy.remote)),
        )

    def _others(self, known: Known) -> list[Copy]:
        """Return those that are not at the remote of the storage itself."""
        return [copy for copy in self._sources(known) if copy.remote in self._remotes]

    def _fetch_into(self, part: Part, known: Known) -> None:
        """Fill *part* from the first remote that can. First with little patience, if there are others."""
        error: StoreError | None = None
        for patience_s in (
            (_FIRST_PATIENCE_S, self._timeout_s)
            if len(self._sources(known)) > 1
            else (self._timeout_s,)
        ):
            for copy in self._others(known):
                try:
                    with deadline.limited(patience_s):
                        if self._fetched(part, copy, known):
                            return
                except StoreError as failure:
                    error = failure
                    self._remotes[copy.remote].error = str(failure)
                    _log.warning("%s cannot be had from %s: %s", known.hash, copy.remote, failure)
        raise error or NotFound(f"no remote has the bytes of {known.hash} any more")

    def _fetched(self, part: Part, copy: Copy, known: Known) -> bool:
        """Fill *part* with a copy, and return whether that is what the hash says. If not, it is noted."""
        remote = self._remotes[copy.remote]
        try:
            there = remote.get(copy, known, part)
        except NotFound:
            _log.error("%s does not have %s any more", copy.remote, known.hash)
            self._note(known, remote, None, "missing")
            return False
        self._catalogue.count_traffic(_month(), "incoming", part.written)
        if there.size == known.size and part.hash() == known.hash:
            remote.error = None
            if (copy.state, copy.etag) != ("stored", there.etag):
                self._note(known, remote, there.etag, "stored")
            return True
        _log.error("the copy of %s at %s is damaged", known.hash, copy.remote)
        self._note(known, remote, there.etag, "damaged")
        return False

    def _note(self, known: Known, remote: Remote, etag: ETag | None, state: str) -> None:
        self._catalogue.note_copy(
            Copy(known.hash, remote.name, known.hash, etag, state, time.time_ns())
        )

    # ---- counters ---------------------------------------------------------------------------

    def total_incoming(self) -> int:
        """Return the bytes that were ever fetched from remotes."""
        return self._traffic("incoming", "%")

    def total_outgoing(self) -> int:
        """Return the bytes that were ever sent to remotes."""
        return self._traffic("outgoing", "%")

    def current_incoming(self) -> int:
        """Return the bytes that were fetched in this month (UTC)."""
        return self._traffic("incoming", _month())

    def current_outgoing(self) -> int:
        """Return the bytes that were sent in this month (UTC)."""
        return self._traffic("outgoing", _month())

    def _traffic(self, direction: str, month: str) -> int:
        sql = "SELECT SUM(bytes) FROM traffic WHERE direction = ? AND month LIKE ?"
        return self._catalogue.number(sql, (direction, month))

    # ---- dumps ------------------------------------------------------------------------------

    def data_dump(self, limit: int) -> str | None:
        """Return a JSON list of uploaded files that are in no dump yet, the oldest first, in *limit* bytes at most.

        None: there is none that fits. Give it to :meth:`data_load`, here and elsewhere, once it is safe where it is
        to be kept; the next dump goes on behind it.
        """
        rows: list[str] = []
        length = 2
        for known in self._catalogue.undumped():
            if not self._storage.is_stored(known.hash):
                continue
            row = json.dumps(self._payload(known), separators=(",", ":"))
            length += len(row) + (1 if rows else 0)
            if length > limit:
                break
            rows.append(row)
        return f"[{','.join(rows)}]" if rows else None

    def data_load(self, data: str, dump_id: str) -> int:
        """Know of every file in a dump, which has the id *dump_id*; return how many were not known.

        Of links only those to remotes that are configured here are used, and what they lead to is verified like any
        other copy; before that it does not count as a reason to remove a file from the storage. Raise ``UsageError``, and load nothing, if it is no dump.
        """
        files = dumps.loaded(data, dump_id)
        news = 0
        with self._catalogue.transaction():
            for known, copies in files:
                there = self._catalogue.known(known.hash)
                if there is not None and there.size != known.size:
                    raise UsageError(
                        f"the dump has another size for {known.hash} than is known here"
                    )
                news += there is None
                self._catalogue.add(known)
                self._catalogue.execute(
                    "UPDATE files SET dump = ? WHERE hash = ?", (dump_id, known.hash)
                )
                have = {copy.remote for copy in self._catalogue.copies(known.hash)}
                for copy in copies:
                    if copy.remote not in have:
                        self._catalogue.note_copy(copy)
        return news

    def _payload(self, known: Known) -> dict[str, object]:
        return dumps.payload(known, self._catalogue.copies(known.hash))

    # ---- the end ----------------------------------------------------------------------------

    def _go_on_as_child(self) -> None:
        """Be the manager of a forked child: what other threads of the parent were at is not the child's."""
        self._kick = threading.Event()
        self._thread = None
        self._storage.go_on_as_child()
        for remote in self._remotes.values():
            remote.go_on_as_child()

    def close(self) -> None:
        """Release everything. What waits to be uploaded stays in the storage, and waits. May be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        self._kick.set()
        for remote in self._remotes.values():
            remote.close()
        if self._thread is not None:
            self._thread.join()
        self._storage.close()
        self._catalogue.close()


def _configured(remotes: Sequence[str], timeout_s: float | None) -> dict[str, Remote]:
    if isinstance(remotes, str):
        raise UsageError("remotes must be a list of sources")
    made = {each.name: each for each in (Remote(text, timeout_s) for text in remotes)}
    if len(made) < len(remotes):
        raise UsageError("each remote can be named once")
    return made


def _survive_forks(manager: CloudManager) -> None:
    """Have *manager* told in a forked child that it is one."""
    reference = weakref.ref(manager)

    def in_child() -> None:
        found = reference()
        if found is not None:
            found._go_on_as_child()

    os.register_at_fork(after_in_child=in_child)


class _NotHad(CacheError):
    """The bytes of a file cannot be had at present."""


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for reading that is one: opening a pipe would wait for who writes it."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{os.fspath(path)} is a directory")
        if not stat.S_ISREG(mode):
            raise UsageError(f"{os.fspath(path)} is no plain file")
        yield file


def _hash_of(file: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(_CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")


def _make_parent(database: Path) -> None:
    try:
        database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot use the database {database}: {error.strerror}") from error
