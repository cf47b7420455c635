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
import re
import stat
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final, Literal

from cachefs.config import MountConfig, current, mount_config, read_config_file
from cachefs.core.closing import Closing
from cachefs.core.errors import (
    CacheError,
    CachefsError,
    Changed,
    Damaged,
    Fault,
    NotFound,
    Refused,
    Stale,
    StoreError,
    UsageError,
)
from cachefs.core.extents import Extent
from cachefs.core.removal import fits
from cachefs.core.types import ETag, Key
from cachefs.engine.body import FileBody
from cachefs.local.catalogue import Catalogue, Copy, Known
from cachefs.local.holdings import Holdings, Part, claimed
from cachefs.remote import deadline
from cachefs.remote.open import open_store
from cachefs.remote.retry import Retrying
from cachefs.remote.store import UploadStopped

__all__ = ["CloudManager"]

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_VERSION: Final = "0.2"
_CHUNK: Final = 2**20
_PAGE: Final = 100
_FIRST_PATIENCE_S: Final = 5.0
"""How long a remote may keep one waiting that can have the bytes from another."""
_AGAIN_S: Final = 30.0
_LARGEST_SIZE: Final = 2**53

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

        *remotes* are where files are uploaded to, each to all of them: ``s3://BUCKET[/PREFIX]``,
        ``swift://CONTAINER``, ``file:///DIRECTORY``, ``NAME:BUCKET`` of the configuration file; they are asked for
        nothing yet. None: a directory beside the database, which is made. *copies*: of how many remotes a file must
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
            self._remotes = self._configured(database, remotes, copies, timeout_s)
            self._holdings = Holdings(
                self._catalogue, storage, storage_size, remotes=list(self._remotes), copies=copies
            )
            self._holdings.make_room(0)  # the capacity may have been larger
        except BaseException:
            self._catalogue.close()
            raise
        self._timeout_s = max(each.timeout_s for each in self._remotes.values())
        self._bodies: set[FileBody] = set()
        self._lock = threading.Lock()
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

    def _configured(
        self,
        database: Path,
        remotes: Sequence[str] | None,
        copies: int,
        timeout_s: float | None,
    ) -> dict[str, "_Remote"]:
        if isinstance(remotes, str):
            raise UsageError("remotes must be a list of sources")
        if remotes is None:
            beside = Path(f"{os.path.abspath(database)}.remote")
            name = f"file://{beside}"
            if not self._catalogue.number("SELECT COUNT(*) FROM copies WHERE remote = ?", (name,)):
                # Once it has had files it is not made again: an empty one in its place would hide that they are gone.
                beside.mkdir(mode=0o700, exist_ok=True)
            remotes = [name]
        if not remotes:
            raise UsageError("there must be a remote at least")
        made = {each.name: each for each in (_Remote(text, timeout_s) for text in remotes)}
        if len(made) < len(remotes):
            raise UsageError("each remote can be named once")
        if not 1 <= copies <= len(made):
            raise UsageError(f"copies must be from 1 to the number of remotes, {len(made)}")
        return made

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
            if self._holdings.verified(digest):
                return digest
            known = Known(digest, Path(file_path).name, size, time.time_ns(), None)
            is_taken = self._take_in(file, known)
            if not is_taken and fits(size, self.capacity()) and self.upload_queue_info()["count"]:
                self.cloud_sync()
                is_taken = self._take_in(file, known)
        self._kick.set()
        return digest if is_taken or self._holdings.is_stored(digest) else False

    def _take_in(self, file: BinaryIO, known: Known) -> bool:
        """Copy *file* into the storage. Return whether there is room for it."""
        with self._holdings.entrance(known.hash, timeout_s=self._timeout_s) as entrance:
            if self._holdings.verified(known.hash):
                return True  # another has brought it in meanwhile
            part = entrance.part(known.size)
            if part is None:
                return False
            file.seek(0)
            while chunk := file.read(min(_CHUNK, part.left)):
                part.write(chunk)
            if part.hash() != known.hash or file.read(1):
                raise Stale(f"{known.name} was changed while it was read")
            self._holdings.keep(part, known)
        return True

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
        if self._holdings.verified(known.hash):
            return str(self._holdings.path_of(known.hash))
        if not self._sources(known):
            if self._is_held(known):
                _log.error("%s was damaged in the storage before it was uploaded", known.hash)
            return False
        return str(self._holdings.path_of(known.hash)) if self._fetch(known) else False

    def download(self, file_hash: str) -> str | Literal[False] | None:
        """Do the same as :meth:`warm_up`."""
        return self.warm_up(file_hash)

    def exists(self, file_hash: str) -> bool:
        """Whether a file is known: it was uploaded once, or loaded from a dump."""
        return self._known(file_hash) is not None

    def on_cache(self, file_hash: str) -> bool:
        """Whether the storage has the file now."""
        known = self._known(file_hash)
        return known is not None and self._holdings.has(known.hash)

    def info(self, file_hash: str) -> dict[str, object] | None:
        """Return what is known of a file: as in a dump, with ``on_cache`` and ``uploaded`` beside. None: nothing."""
        known = self._known(file_hash)
        if known is None:
            return None
        return {
            **self._payload(known),
            "on_cache": self._holdings.has(known.hash),
            "uploaded": self._holdings.is_stored(known.hash),
        }

    def _known(self, digest: str) -> Known | None:
        return self._catalogue.known(digest.lower())

    def _is_held(self, known: Known) -> bool:
        return bool(self._catalogue.all("SELECT 1 FROM held WHERE hash = ?", (known.hash,)))

    # ---- room -------------------------------------------------------------------------------

    def capacity(self) -> int:
        """Return how many bytes the storage may have."""
        return self._holdings.capacity

    def used_space(self) -> int:
        """Return how many bytes of it are taken."""
        return self._holdings.used()

    def usage_ratio(self) -> float:
        """Return the taken part of the storage, from 0.0 to 1.0."""
        return self.used_space() / self.capacity()

    def make_room_for(self, size: int) -> bool:
        """Remove files from the storage until *size* bytes are free, and return whether they are.

        Only files that are uploaded are removed: of those that are as large as what lacks the smallest, or, if there
        is none, smaller ones, the largest first. If all of them would not be enough none is removed. A file may take
        nine tenths of the capacity at most.
        """
        return self._holdings.make_room(size)

    # ---- uploads ----------------------------------------------------------------------------

    def cloud_sync(self) -> bool:
        """Bring every file to every remote that lacks it, and return whether all is there now.

        A file that the storage does not have any more is fetched from another remote for it. A remote that fails is
        left alone for the rest of the call; :meth:`sync_status` tells why. What another thread or process is
        uploading is left to it.
        """
        with suppress(UploadStopped):  # closed meanwhile
            for remote in self._remotes.values():
                try:
                    self._bring_all(remote)
                except (Fault, Refused) as error:
                    remote.error = str(error)
                    _log.warning("not uploaded to %s: %s", remote.name, error)
        return self.upload_queue_info()["count"] == 0

    def _bring_all(self, remote: "_Remote") -> None:
        after = (-1, "")
        while files := self._catalogue.lacking(remote.name, after, _PAGE):
            for known in files:
                if self._is_closed:
                    return
                after = (known.added_ns, known.hash)
                try:
                    self._bring(known, remote)
                except (CacheError, NotFound, Changed) as error:
                    _log.warning("%s is not uploaded to %s: %s", known.hash, remote.name, error)
        remote.error = None

    def _bring(self, known: Known, remote: "_Remote") -> None:
        if not self._holdings.verified(known.hash):
            self._have(known)
        with claimed(self._holdings.path_of(known.hash)) as file:
            if file is not None and not any(
                copy.remote == remote.name and copy.state == "stored"
                for copy in self._catalogue.copies(known.hash)
            ):
                self._send(file, known, remote)

    def _have(self, known: Known) -> None:
        """Fetch a file for a remote that lacks it. Whatever goes wrong is no fault of that remote."""
        if not self._sources(known):
            raise _NotHad("its bytes are nowhere")
        try:
            is_here = self._fetch(known)
        except StoreError as error:
            raise _NotHad(f"it cannot be had from the others: {error}") from error
        if not is_here:
            raise _NotHad("there is no room to fetch it from another remote")

    def _send(self, file: BinaryIO, known: Known, remote: "_Remote") -> None:
        body = FileBody(file.fileno(), known.size)
        body.md5 = _checked_md5(file, known)
        with self._lock:
            if self._is_closed:
                body.pause()
            self._bodies.add(body)
        try:
            etag = self._put(known, remote, body)
        finally:
            with self._lock:
                self._bodies.discard(body)
        self._note(known, remote, etag, "stored")

    def _put(self, known: Known, remote: "_Remote", body: FileBody) -> ETag:
        """Store *body*, or find that the remote has it already. Return the version."""
        store = remote.writable()
        key = Key(known.hash)
        meta = {"sha256": known.hash}
        try:
            return self._counted(known, store.put(key, body, meta=meta, if_match=None).etag)
        except Changed:
            there = store.head(key)
        if there.size == known.size and _fetched_hash(store, key, there.etag, known) == known.hash:
            return there.etag
        _log.warning("%s has other bytes under %s: they are replaced", remote.name, known.hash)
        return self._counted(known, store.put(key, body, meta=meta, if_match=there.etag).etag)

    def _counted(self, known: Known, etag: ETag) -> ETag:
        self._catalogue.count_traffic(_month(), "outgoing", known.size)
        return etag

    def upload_queue_info(self) -> dict[str, int]:
        """Return ``count`` and ``size`` (in bytes) of the files that some remote does not have yet."""
        count, size = self._catalogue.lacking_any(list(self._remotes))
        return {"size": size, "count": count}

    def sync_status(self) -> dict[str, object]:
        """Return how many files there are, how many wait, and of each remote what it has and why it failed last."""
        return {
            "files": self._catalogue.number("SELECT COUNT(*) FROM files"),
            "on_cache": self._catalogue.number("SELECT COUNT(*) FROM held"),
            "waiting": self.upload_queue_info(),
            "remotes": {
                name: {**self._catalogue.states(name), "error": remote.error}
                for name, remote in self._remotes.items()
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
        copies = {
            copy.remote: copy
            for copy in self._catalogue.copies(known.hash)
            if copy.state in ("stored", "said") and copy.remote in self._remotes
        }
        names = sorted(
            (name for name in self._remotes if name in copies),
            key=lambda name: self._remotes[name].error is not None,
        )
        return [copies[name] for name in names]

    def _fetch(self, known: Known) -> bool:
        """Have the bytes of a file in the storage. Return whether there is room for them."""
        with self._holdings.entrance(known.hash, timeout_s=self._timeout_s) as entrance:
            if self._holdings.verified(known.hash):
                return True  # another has fetched it meanwhile
            self._holdings.forget_lost(known.hash)
            part = entrance.part(known.size)
            if part is None:
                return False
            self._fetch_into(part, known)
            self._holdings.keep(part, known)
        return True

    def _fetch_into(self, part: Part, known: Known) -> None:
        """Fill *part* from the first remote that can. First with little patience, if there are others."""
        copies = self._sources(known)
        error: StoreError | None = None
        for patience_s in (
            (_FIRST_PATIENCE_S, self._timeout_s) if len(copies) > 1 else (self._timeout_s,)
        ):
            for copy in self._sources(known):
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
        part.restart()
        try:
            there = remote.store().head(Key(copy.key))
            if there.size == known.size and known.size:
                extent = Extent(0, known.size)
                remote.store().get_range(Key(copy.key), extent, part, if_match=there.etag)
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

    def _note(self, known: Known, remote: "_Remote", etag: ETag | None, state: str) -> None:
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
            if not self._holdings.is_stored(known.hash):
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
        files = [_loaded(each, dump_id) for each in _rows(data)]
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
        moment = datetime.fromtimestamp(known.added_ns // 10**9, UTC)
        return {
            "version": _VERSION,
            "filename": known.name,
            "filesize": known.size,
            "filehash": known.hash,
            "datetime": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "uploads": [
                {"remote": copy.remote, "key": copy.key, "etag": copy.etag}
                for copy in self._catalogue.copies(known.hash)
                if copy.state == "stored"
            ],
        }

    # ---- the end ----------------------------------------------------------------------------

    def _go_on_as_child(self) -> None:
        """Be the manager of a forked child: what other threads of the parent were at is not the child's."""
        self._lock = threading.Lock()
        self._kick = threading.Event()
        self._bodies = set()
        self._thread = None
        for remote in self._remotes.values():
            remote.go_on_as_child()

    def close(self) -> None:
        """Release everything. What waits to be uploaded stays in the storage, and waits. May be called again."""
        with self._lock:
            is_first, self._is_closed = not self._is_closed, True
            for body in self._bodies:
                body.pause()
        if not is_first:
            return
        self._kick.set()
        for remote in self._remotes.values():
            remote.close()
        if self._thread is not None:
            self._thread.join()
        self._catalogue.close()


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


class _Remote:
    """One place where files are uploaded to: opened when it is asked for something, by each process anew."""

    def __init__(self, text: str, timeout_s: float | None) -> None:
        self._environment = current()
        self._config: MountConfig = mount_config(
            text, None, (), file=read_config_file(self._environment), environment=self._environment
        )
        if not self._config.source.bucket:
            raise UsageError(f"the remote {text} names no bucket")
        self.timeout_s = self._config.timeout_s if timeout_s is None else timeout_s
        self.name = text.rstrip("/")
        self.error: str | None = None
        """Why it failed last; None: it did not since it last answered."""
        self._lock = threading.Lock()
        self._store: Retrying | None = None
        self._inherited: Retrying | None = None
        """A forked child's: the parent's, which it must neither use nor close."""
        self._is_probed = False
        self._is_closed = False

    def store(self) -> Retrying:
        """Return the store."""
        with self._lock:
            if self._is_closed:
                raise Fault("the cloud manager is closed")
            if self._store is None:
                self._store = open_store(
                    self._config.source,
                    self._config.store,
                    timeout_s=self.timeout_s,
                    environ=self._environment.variables,
                )
            return self._store

    def writable(self) -> Retrying:
        """Return the store, of which is known how it is written to."""
        store = self.store()
        with self._lock:
            if not self._is_probed:
                store.check()
                store.probe()
                self._is_probed = True
        return store

    def close(self) -> None:
        """Release the connections, and end waits."""
        self._is_closed = True
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def go_on_as_child(self) -> None:
        """Leave the connections to the parent, and make others."""
        self._lock = threading.Lock()
        self._inherited, self._store, self._is_probed = self._store, None, False


class _Hashing:
    """A sink that only sums."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: memoryview, /) -> None:
        self.digest.update(data)

    def restart(self) -> None:
        self.digest = hashlib.sha256()


def _fetched_hash(store: Retrying, key: Key, etag: ETag, known: Known) -> str:
    """Return the hash of what the store has."""
    sink = _Hashing()
    if known.size:
        store.get_range(key, Extent(0, known.size), sink, if_match=etag)
    return sink.digest.hexdigest()


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


def _checked_md5(file: BinaryIO, known: Known) -> str:
    """Return the MD5 of a file in the storage. Raise ``Damaged`` if it is not what it is named for."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    while chunk := file.read(_CHUNK):
        sha256.update(chunk)
        md5.update(chunk)
    if sha256.hexdigest() != known.hash:
        raise Damaged("its bytes in the storage are damaged")
    return md5.hexdigest()


def _month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")


def _make_parent(database: Path) -> None:
    try:
        database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot use the database {database}: {error.strerror}") from error


def _rows(data: str) -> list[object]:
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list):
        raise UsageError("what is to be loaded is no dump")
    return rows


def _loaded(row: object, dump_id: str) -> tuple[Known, list[Copy]]:
    """Return the file of one row of a dump, with its copies. Raise ``UsageError`` if it is none."""
    match row:
        case {
            "version": str(version),
            "filename": str(name),
            "filesize": int(size),
            "filehash": str(digest),
            "datetime": str(moment),
            "uploads": list(uploads),
        } if version == _VERSION and _HASH.fullmatch(digest) and 0 <= size < _LARGEST_SIZE:
            try:
                added_ns = int(datetime.fromisoformat(moment).timestamp()) * 10**9
            except (ValueError, OverflowError, OSError):
                raise UsageError(f"the dump has no moment for {digest}") from None
            return Known(digest, name, size, added_ns, dump_id), [
                _link(digest, each) for each in uploads
            ]
    raise UsageError(f"what is to be loaded has a row that is none of version {_VERSION}")


def _link(digest: str, upload: object) -> Copy:
    match upload:
        case {"remote": str(remote), "key": str(key), "etag": str() | None as etag}:
            return Copy(digest, remote, key, etag, "said", time.time_ns())
    raise UsageError(f"the dump has a link for {digest} that is none")
