"""What the pool's clients call an object, and what it is called in the store and in the tree."""

from cachefs.core.errors import NoEntry, UsageError
from cachefs.core.keys import name_of, path_shown
from cachefs.core.types import Key


class Buckets:
    """The buckets that there are."""

    def __init__(self, bucket: str | None, prefix: str) -> None:
        """*bucket*: the one that there is, of which there are the keys that begin with *prefix*; None: the first part of each path names one."""
        self._bucket = bucket
        self._prefix = prefix

    @property
    def is_one(self) -> bool:
        """Whether there is one only."""
        return self._bucket is not None

    def check(self, bucket: str, key: str | None = None) -> None:
        """Raise unless *bucket* can be one of ours, and *key* an object in it."""
        mine = self._bucket
        is_odd = bucket in ("", ".", "..") or any(each in bucket for each in "/\n\0")
        if is_odd or (mine is not None and bucket != mine):
            advice = "" if mine is None else f" — there is {mine} alone"
            raise NoEntry(f"no such bucket: {ascii(bucket)[1:-1][:200]}{advice}")
        if key is None:
            return
        if not key or key.endswith("/"):
            raise UsageError("a key that is empty or ends in a slash is no file")
        if "\0" in key or any(part in (".", "..") for part in key.split("/")):
            raise UsageError("a key must not climb out of its bucket, nor hold a NUL")
        if not key.startswith(self._prefix):
            raise NoEntry(f"{no_key(key)}: there is what lies below {self._prefix} alone")

    def key(self, bucket: str, key: str) -> Key:
        """Return the key that the store has below what the pool is of."""
        if self._bucket is None:
            return Key(f"{bucket}/{key}")
        return Key(key.removeprefix(self._prefix))

    def tree_path(self, bucket: str, key: str | None, *, is_shadowed: bool = False) -> str:
        """Return the path that shows *key* (None: the bucket) in the tree."""
        shown = [] if self._bucket is not None else [path_shown(Key(bucket))]
        if key is not None:
            above, slash, last = key.removeprefix(self._prefix).rpartition("/")
            shown += [path_shown(Key(above))] if slash else []
            shown.append(bytes(name_of(last, shadowed=is_shadowed)))
        return b"/".join(shown).decode("utf-8", "surrogateescape")

    def below(self, bucket: str) -> Key:
        """Return with what the store's keys of a bucket begin."""
        return Key("" if self.is_one else f"{bucket}/")

    def told(self, key: str) -> str:
        """Return what clients call what the store has as *key* behind :meth:`below`."""
        return self._prefix + key


def no_key(key: str) -> NoEntry:
    """Return the error for a key that there is not."""
    return NoEntry(f"no such key: {ascii(key)[1:-1][:1100]}")
