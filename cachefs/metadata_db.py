"""The MD5s of objects, and what is recorded of buckets, for programs: ``from cachefs import MetadataDB``.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from cachefs import MetadataDB
    >>> with TemporaryDirectory() as home, MetadataDB(db_path=Path(home) / "md5.db") as db:
    ...     db.set_md5(
    ...         bucket_name="photos",
    ...         object_key="2024/sea 100%.jpg",
    ...         etag="9b2cf535f27731c974343645a3985328-2",
    ...         file_size=9_000_000,
    ...         md5_hash="0cc175b9c0f1b6a831c399e269772661",
    ...     )
    ...     db.get_md5_by_key(bucket_name="photos", object_key="2024/sea 100%.jpg")
    ...     db.get_stats()["total_files"]
    ...     db.cleanup_bucket("photos")
    '0cc175b9c0f1b6a831c399e269772661'
    1
    1

It may be used beside a mount, and from any number of threads and processes: what is read comes from the database as it
is at one moment, what is written goes through the mount's daemon where one lives, and into the file itself where none does.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypedDict, TypeVar

from cachefs.client import ControlClient, NoDaemon
from cachefs.config import current, read_config_file
from cachefs.core.closing import Closing
from cachefs.core.errors import CacheError, UsageError
from cachefs.core.fingerprint import is_md5
from cachefs.core.known_md5 import BucketStats, How, KnownMd5
from cachefs.core.source import Source, StoreKind
from cachefs.core.types import ETag
from cachefs.known import SOCKET_NAME, Remotes, cache_dirs
from cachefs.local.db import Database
from cachefs.local.directory import CacheDirectory
from cachefs.local.md5s import Census, Md5s
from cachefs.local.shared import SharedDatabase

T = TypeVar("T")

_OWN_NAME: Final = "md5s.sqlite3"
_ANSWER_S: Final = 60.0
_LONGEST_VACUUM_S: Final = 3600.0
_AT_ONCE: Final = 200
"""Records that are written in one transaction."""
_RECONNECTS: Final = 3


class BucketCounts(TypedDict):
    """What is recorded of one bucket. Times are ISO 8601 in UTC."""

    remote: str
    """The store, as it calls itself: ``s3://photos at http://…``. Empty: a program has named none."""
    bucket: str
    total_files: int
    """Objects that are known."""
    total_size: int
    """Their bytes."""
    with_md5: int
    """Those whose MD5 is known."""
    cached_files: int
    """Those of which bytes are in the cache."""
    cached_bytes: int
    """What these take of its disk."""
    oldest_entry: str | None
    """When the oldest record was last confirmed."""
    newest_entry: str | None


class Counts(TypedDict):
    """What is recorded in all, and of each bucket."""

    total_files: int
    total_size: int
    with_md5: int
    cached_files: int
    cached_bytes: int
    oldest_entry: str | None
    newest_entry: str | None
    buckets: list[BucketCounts]


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """What has become of one database."""

    path: Path
    before: int
    """Bytes."""
    after: int
    is_possible: bool = True
    """False: an older cachefs has made it, and a mount has it in use. It can be made smaller when that has ended."""
    is_held: bool = False
    """True: some program reads it without a pause. There is more to give back when that has ended."""


class MetadataDB(Closing):
    """The MD5s of objects, by bucket and key, and what is recorded of buckets.

    An MD5 is that of one version of the object: of what the store has replaced since, nothing is told. Where the ETag is
    the MD5, nothing need be recorded: it is told all the same. Thread-safe. Raise ``cachefs.core.errors.CacheError`` where a
    database cannot be used, ``UsageError`` for what makes no sense.

    *remote* names a store where several have a bucket of one name: a source (``s3://photos``), the name of a
    ``[remotes.NAME]``, or what :meth:`list_workspaces` calls it. *workspace_id* is another name for it.
    """

    def __init__(self, db_path: Path | str | None = None) -> None:
        """Open *db_path*: a file of MD5s, which is made if there is none, or a cache directory.

        None: every cache directory that is known for this user, and for what none of them caches a file of the user's own.
        """
        environment = current()
        file = read_config_file(environment)
        self._remotes = Remotes(file, environment)
        self._parts: list[_Part] = []
        self._lock = threading.Lock()
        self._own: Path | None = None
        self.unusable: dict[Path, str] = {}
        """Cache directories that are known and cannot be used, each with the reason."""
        if db_path is not None:
            self._parts.append(_Part(environment.absolute(str(db_path))))
            return
        self._own = environment.cache_root / _OWN_NAME
        for cache_dir in cache_dirs(file, environment):
            try:
                self._parts.append(_Part(cache_dir))
            except (CacheError, UsageError) as error:
                self.unusable[cache_dir] = str(error)
        if self._own.exists():
            self._parts.append(_Part(self._own))

    def close(self) -> None:
        """Close every database. Safe to call twice."""
        for part in self._parts:
            part.close()

    # ---- MD5s ------------------------------------------------------------------------------------

    def get_md5(
        self,
        bucket_name: str,
        object_key: str,
        *,
        etag: str,
        size: int | None = None,
        remote: str | None = None,
    ) -> str | None:
        """Return the MD5, in hexadecimal, of the version *etag* of an object; None: it is not known."""
        for part in self._covering(bucket_name, object_key, remote):
            for found in part.of(bucket_name, object_key, self._told(part, remote)):
                if found.etag == etag and size in (None, found.size):
                    return found.md5
        return None

    def get_md5_by_key(
        self,
        bucket_name: str,
        object_key: str,
        *,
        remote: str | None = None,
        workspace_id: str | int | None = None,
    ) -> str | None:
        """Return the MD5, in hexadecimal, of the version of an object that is known last; None: it is not known."""
        remote = _named(remote, workspace_id)
        for part in self._covering(bucket_name, object_key, remote):
            found = part.latest(bucket_name, object_key, self._told(part, remote))
            if found is not None:
                return found
        return None

    def set_md5(
        self,
        *,
        bucket_name: str,
        object_key: str,
        etag: str,
        file_size: int,
        md5_hash: str,
        remote: str | None = None,
        workspace_id: str | int | None = None,
    ) -> None:
        """Record the MD5 of the version *etag*, of *file_size* bytes, in the place of what was recorded of another.

        Raise ``UsageError`` where several stores have such a bucket, and *remote* does not say which is meant.
        """
        if not is_md5(md5_hash.lower()):
            raise UsageError(f"{md5_hash!r} is no MD5 in hexadecimal")
        now_ns = time.time_ns()
        remote = _named(remote, workspace_id)
        part = self._only(bucket_name, object_key, remote)
        part.keep(
            KnownMd5(
                bucket_name,
                object_key,
                ETag(etag.strip('"')),
                file_size,
                md5_hash.lower(),
                How.GIVEN,
                self._told(part, remote) or "",
                now_ns,
                now_ns,
            )
        )

    def remove_md5(
        self,
        bucket_name: str,
        object_key: str,
        *,
        remote: str | None = None,
        workspace_id: str | int | None = None,
    ) -> bool:
        """Forget what is recorded of an object. Return whether there was anything."""
        remote = _named(remote, workspace_id)
        counts = [
            part.remove(bucket_name, object_key, self._told(part, remote))
            for part in self._covering(bucket_name, object_key, remote)
        ]
        return any(counts)

    def find(self, bucket: str, key: str, /, *, remote: str | None = None) -> KnownMd5 | None:
        """Return what is recorded of an object, of whatever version; None: nothing is."""
        parts = self._covering(bucket, key, remote)
        found = (part.find(bucket, key, self._told(part, remote)) for part in parts)
        return next(filter(None, found), None)

    def keep(self, found: KnownMd5, /) -> None:
        """Record what was found out, with how that was. *found.remote*: as :meth:`set_md5` has it."""
        part = self._only(found.bucket, found.key, found.remote or None)
        part.keep(replace(found, remote=self._told(part, found.remote) or ""))

    # ---- buckets and stores ------------------------------------------------------------------------

    def list_buckets(self, *, remote: str | None = None) -> list[str]:
        """Return the buckets of which anything is recorded."""
        found = [bucket for part in self._of(remote) for _, bucket in part.buckets()]
        return sorted(set(found))

    def list_workspaces(self) -> list[str]:
        """Return the stores of which anything is recorded, each as *remote* may name it."""
        return sorted({remote for part in self._parts for remote, _ in part.buckets()})

    def get_stats(self, *, bucket_name: str | None = None, remote: str | None = None) -> Counts:
        """Return what is recorded, in all and of each bucket; of one bucket, or one store, where that is named."""
        found = [
            stats
            for part in self._of(remote)
            for stats in part.stats(bucket_name)
            if part.is_directory or remote in (None, stats.remote)
        ]
        return {
            "total_files": sum(each.objects for each in found),
            "total_size": sum(each.size for each in found),
            "with_md5": sum(each.with_md5 for each in found),
            "cached_files": sum(each.cached for each in found),
            "cached_bytes": sum(each.cached_bytes for each in found),
            "oldest_entry": _moment(
                min(filter(None, (each.oldest_ns for each in found)), default=None)
            ),
            "newest_entry": _moment(
                max(filter(None, (each.newest_ns for each in found)), default=None)
            ),
            "buckets": [_counts(each) for each in found],
        }

    def cleanup_bucket(self, bucket_name: str, *, remote: str | None = None) -> int:
        """Forget the MD5s of a bucket. Return how many there were. Objects and cached bytes stay."""
        return sum(part.forget(bucket_name, self._told(part, remote)) for part in self._of(remote))

    def cleanup_workspace(self, remote: str | int) -> int:
        """Forget the MD5s of all buckets of a store. Return how many there were. Objects and cached bytes stay."""
        named = str(remote)
        return sum(part.forget(None, self._told(part, named)) for part in self._of(named))

    def vacuum(self, *, remote: str | None = None) -> list["Vacuumed"]:
        """Give back what is unused in the databases, beside a mount a little at a time. Return what that was of each.

        Raise ``cachefs.core.errors.InUse`` where a process that is no mount has a cache directory.
        """
        return [part.vacuum() for part in self._of(remote)]

    def databases(self, *, remote: str | None = None) -> list[Path]:
        """Return the files that are asked, of a store or of all."""
        return [part.path for part in self._of(remote)]

    # ---- who is meant --------------------------------------------------------------------------------

    def _of(self, remote: str | None) -> list["_Part"]:
        """Return the databases of a store; of a file of MD5s, the rows tell whose they are."""
        return [part for part in self._parts if self._is_of(part, remote)]

    def _is_of(self, part: "_Part", remote: str | None) -> bool:
        if remote is None or not part.is_directory:
            return True
        return self._remotes.means(remote, part.path.parent, part.description)

    def _covering(self, bucket: str, key: str, remote: str | None) -> list["_Part"]:
        return [part for part in self._of(remote) if part.covers(bucket, key)]

    def _only(self, bucket: str, key: str, remote: str | None) -> "_Part":
        """Return the database that an object's MD5 belongs into."""
        found = self._covering(bucket, key, remote)
        directories = [part for part in found if part.is_directory]
        if len(directories) > 1:
            stores = ", ".join(part.description for part in directories)
            raise UsageError(f"several stores have {bucket}/{key}: {stores} — say which by remote")
        if found:
            return directories[0] if directories else found[0]
        if self._own is None:
            raise UsageError(f"{self._parts[0].path} is a cache of another store, or prefix")
        with self._lock:
            if not any(part.path == self._own for part in self._parts):
                self._parts.append(_Part(self._own))
            return self._parts[-1]

    @staticmethod
    def _told(part: "_Part", remote: str | None) -> str | None:
        """Return under which name of a store *part* has its rows; None: under whichever."""
        return "" if part.is_directory else remote


class _Part:
    """One database."""

    def __init__(self, path: Path) -> None:
        self._rows = SharedDatabase(path)
        self.is_directory = self._rows.is_directory
        self.path = self._rows.path
        self._md5s = Md5s(self._rows)
        self._lock = threading.Lock()
        self._client: ControlClient | None = None

    @property
    def description(self) -> str:
        """What the store calls itself that is cached here."""
        return (self._rows.get_meta("source") or "") if self.is_directory else ""

    def close(self) -> None:
        with self._lock:
            self._hang_up()
        self._rows.close()

    def _source(self) -> Source | None:
        return Source.of_description(self.description) if self.is_directory else None

    def _census(self) -> Census | None:
        source = self._source()
        return None if source is None else Census(self._rows, source, remote=self.description)

    # ---- reading -----------------------------------------------------------------------------------

    def covers(self, bucket: str, key: str) -> bool:
        """Whether what is recorded of an object may be in here."""
        if not self.is_directory:
            return True
        source = self._source()
        if source is None:  # nothing was ever mounted on it
            return True
        if not source.bucket and source.kind is not StoreKind.MEMORY:
            return bucket in Census(self._rows, source, remote="").buckets()
        return source.inner(bucket, key) is not None

    def find(self, bucket: str, key: str, remote: str | None) -> KnownMd5 | None:
        """Return what is recorded of an object."""
        return self._md5s.find(bucket, key, remote=remote)

    def of(self, bucket: str, key: str, remote: str | None) -> Iterator[KnownMd5]:
        """Yield what is known of an object, of one version or of two."""
        with self._rows.reading():
            kept = self._md5s.find(bucket, key, remote=remote)
            census = self._census()
            seen = None if census is None else census.seen(bucket, key)
        if kept is not None:
            yield kept
        if seen is not None and seen.is_md5 and seen.etag is not None:
            yield KnownMd5(bucket, key, seen.etag, seen.size, seen.etag, How.TOLD)

    def latest(self, bucket: str, key: str, remote: str | None) -> str | None:
        """Return the MD5 of the version that is known last."""
        with self._rows.reading():
            kept = self._md5s.find(bucket, key, remote=remote)
            census = self._census()
            seen = None if census is None else census.seen(bucket, key)
        if seen is None or seen.etag is None:
            return None if kept is None else kept.md5
        if kept is not None and kept.is_of(seen.etag, seen.size):
            return kept.md5
        return seen.etag if seen.is_md5 else None

    def buckets(self) -> list[tuple[str, str]]:
        """Return each store and bucket of which anything is recorded."""
        with self._rows.reading():
            census = self._census()
            if census is None:
                return self._md5s.buckets()
            return [(self.description, bucket) for bucket in census.buckets()]

    def stats(self, bucket: str | None) -> list[BucketStats]:
        """Return what is recorded of each bucket, or of one."""
        with self._rows.reading():
            census = self._census()
            return [
                self._md5s.stats(remote, each) if census is None else census.stats(each)
                for remote, each in self.buckets()
                if bucket in (None, each)
            ]

    # ---- writing -----------------------------------------------------------------------------------

    def keep(self, *found: KnownMd5) -> None:
        for start in range(0, len(found), _AT_ONCE):
            some = found[start : start + _AT_ONCE]
            self._write(
                "keep_md5s",
                {"md5s": [each.to_json() for each in some]},
                lambda some=some: self._md5s.keep(*some),  # type: ignore[misc]
            )

    def remove(self, bucket: str, key: str, remote: str | None) -> bool:
        question = {"bucket": bucket, "key": key}
        return bool(
            self._write(
                "remove_md5", question, lambda: self._md5s.remove(bucket, key, remote=remote)
            )
        )

    def forget(self, bucket: str | None, remote: str | None) -> int:
        total = 0
        while count := self._write(
            "forget_md5s",
            {"bucket": bucket},
            lambda: self._md5s.forget_some(bucket, remote=remote),
        ):
            total += int(str(count))
        return total

    def vacuum(self) -> Vacuumed:
        with self._lock:
            client = self._asked()
            if client is not None:
                with contextlib.suppress(NoDaemon):
                    told: Any = client.ask("vacuum", timeout_s=_LONGEST_VACUUM_S)
                    return Vacuumed(
                        self.path,
                        int(told["before"]),
                        int(told["after"]),
                        is_possible=bool(told["is_possible"]),
                        is_held=bool(told.get("is_held", False)),
                    )
                self._hang_up()
        if not self.is_directory:
            before = self._rows.compact()
        else:
            self._rows.rest()
            lock = CacheDirectory(self.path.parent)
            try:
                db = Database(self.path.parent)
                try:
                    before = db.compact()
                finally:
                    db.close()
            finally:
                lock.close()
        return Vacuumed(self.path, before, self.path.stat().st_size)

    def _asked(self) -> ControlClient | None:
        """Return the connection to the daemon, if one lives."""
        if self._client is None and self.is_directory:
            with contextlib.suppress(NoDaemon):
                self._client = ControlClient(self.path.parent / SOCKET_NAME, timeout_s=_ANSWER_S)
        return self._client

    def _write(
        self, verb: str, question: Mapping[str, Any], directly: Callable[[], object]
    ) -> object:
        """Have the daemon do it, where one lives; else do it *directly*."""
        with self._lock:
            for _ in range(_RECONNECTS if self.is_directory else 0):
                client = self._asked()
                if client is None:
                    break
                try:
                    return client.ask(verb, **question)
                except NoDaemon:  # it has ended, or had too many callers
                    self._hang_up()
        return directly()

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def _named(remote: str | None, workspace_id: str | int | None) -> str | None:
    return remote if workspace_id is None else str(workspace_id)


def _moment(when_ns: int | None) -> str | None:
    return None if when_ns is None else datetime.fromtimestamp(when_ns / 1e9, UTC).isoformat()


def _counts(stats: BucketStats) -> BucketCounts:
    return {
        "remote": stats.remote,
        "bucket": stats.bucket,
        "total_files": stats.objects,
        "total_size": stats.size,
        "with_md5": stats.with_md5,
        "cached_files": stats.cached,
        "cached_bytes": stats.cached_bytes,
        "oldest_entry": _moment(stats.oldest_ns),
        "newest_entry": _moment(stats.newest_ns),
    }
