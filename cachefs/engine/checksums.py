"""The MD5s of objects: kept where the store's ETag is none, and told wherever they are known.

Nothing that is promised depends on one: what the disk does not take is not kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from cachefs.core.errors import CacheError, UsageError
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.known_md5 import How, KnownMd5
from cachefs.core.source import Source
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.local.inodes import Inode
from cachefs.local.md5s import Md5s


class Checksums:
    """The MD5s that one mount keeps, by the keys that it has for objects."""

    def __init__(self, md5s: Md5s, source: Source, now_ns: Callable[[], int]) -> None:
        """*now_ns*: by the clock on the wall."""
        self._md5s = md5s
        self._source = source
        self._now_ns = now_ns

    # ---- what the mount learns -------------------------------------------------------------------

    def keep(self, key: Key, etag: ETag, size: int, md5: str, how: How) -> None:
        """Keep the MD5 of the version *etag*, unless that is the MD5 itself."""
        if etag == md5:
            return
        now_ns = self._now_ns()
        bucket, natural = self._source.natural(key)
        with _unpromised():
            self._md5s.keep(
                KnownMd5(bucket, natural, etag, size, md5, how, made_ns=now_ns, updated_ns=now_ns)
            )

    def told(self, key: Key, said: Fingerprint) -> str | None:
        """Return the MD5 that the store tells, and keep it: the next time nobody needs to ask."""
        md5 = said.md5 or said.stored_md5
        if md5 is not None and said.info.meta is not None:
            self.keep(key, said.info.etag, said.info.size, md5, How.TOLD)
        return md5

    def follow(self, key: Key, inode: Inode, info: ObjectInfo) -> None:
        """Note that the bytes of the version that *inode* had at *key* are the version *info* now, perhaps elsewhere."""
        with _unpromised():
            found = self._find(key)
            if found is None:
                return
            if found.is_of(inode.etag, inode.size):
                self.keep(info.key, info.etag, found.size, found.md5, found.how)
            if info.key != key:
                self._md5s.remove(found.bucket, found.key)

    def forget(self, key: Key) -> None:
        """Note that nothing is at *key* any more."""
        with _unpromised():
            self._md5s.remove(*self._source.natural(key))

    # ---- what the mount tells --------------------------------------------------------------------

    def of(self, key: Key, inode: Inode) -> str | None:
        """Return the MD5 of the version that is known, as far as anything here tells it."""
        if inode.etag is None:
            return None
        found = self._find(key)
        if found is not None and found.is_of(inode.etag, inode.size):
            return found.md5
        if (
            inode.meta is None
        ):  # only a listing was seen, which does not tell how an object is encrypted
            return None
        if inode.is_md5:
            return inode.etag
        info = ObjectInfo(key, inode.size, inode.etag, 0, inode.content_type, inode.meta)
        return Fingerprint(info).stored_md5

    def _find(self, key: Key) -> KnownMd5 | None:
        bucket, natural = self._source.natural(key)
        return self._md5s.find(bucket, natural)

    # ---- what others have it kept, and forgotten -----------------------------------------------------

    def keep_all(self, found: Sequence[KnownMd5]) -> None:
        """Keep what a program tells. Raise ``UsageError`` for what is no object of this store."""
        for each in found:
            if self._source.inner(each.bucket, each.key) is None or each.remote:
                raise UsageError(f"{each.bucket}/{each.key} is not of {self._source}")
        self._md5s.keep(*found)

    def remove(self, bucket: str, key: str) -> int:
        """Forget what is kept of an object, by the key that the store has. Return how much that was."""
        return self._md5s.remove(bucket, key)

    def forget_some(self, bucket: str | None) -> int:
        """Forget some of what is kept of a bucket, or of all. Return how many: none when nothing is left."""
        return self._md5s.forget_some(bucket)


@contextmanager
def _unpromised() -> Iterator[None]:
    with suppress(CacheError):
        yield
