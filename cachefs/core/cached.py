"""What operators are told of one file in the cache."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from cachefs.core.eviction import Facts, Policy, Standing
from cachefs.core.intent import State
from cachefs.core.sums import PieceSums
from cachefs.core.types import EntryId, ETag, Key


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """How full a cache is."""

    used: int
    """Bytes of disk."""
    limit: int | None
    """The most that the last mount let it take; None: nobody has said it yet."""
    policy: Policy
    """By what its files stand in the order of eviction."""


@dataclass(frozen=True, slots=True)
class CachedFile:
    """One cache entry: which object's bytes it has, how many, and who needs them."""

    id: EntryId
    path: str
    """Relative to the mount; bytes that are no UTF-8 as surrogates. Of a file without a name: what it was for."""
    key: Key | None
    """None: the file has no name, because it was removed while open, or set aside."""
    size: int
    """Bytes of the whole file."""
    cached: int
    """Bytes of it that are here."""
    cost: int
    """Bytes of disk that it takes."""
    etag: ETag | None
    """The version that the bytes are, or grew from; None: the store has none."""
    used_ns: int
    """When it was last opened or closed, since the epoch."""
    made_ns: int
    """When the first of it came here, since the epoch."""
    hits: int
    """How often programs have opened it since."""
    fetch_ns: int
    """For how long requests brought its bytes; 0: none of these bytes was fetched."""
    fetch_s: float
    """Seconds that fetching it again would take: what it took, or what others let expect."""
    standing: Standing
    """Where it stands in the mount's order of eviction."""
    is_pinned: bool
    """The operator wants it kept."""
    mtime_ns: int
    state: State | None
    """Of what the store is owed; None: nothing, the bytes are clean."""
    pins: int
    """Open handles, fetches and uploads that hold it at this moment."""

    @property
    def facts(self) -> Facts:
        """What the policies of eviction know of it."""
        return Facts(self.cost, self.made_ns, self.used_ns, self.hits, self.fetch_ns)

    @property
    def is_whole(self) -> bool:
        """Whether every byte is here."""
        return self.cached >= self.size

    def to_json(self) -> dict[str, object]:
        """Return it as what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` told. Raise ``KeyError``, ``TypeError`` or ``ValueError`` if it did not."""
        state, standing = row["state"], Standing(**row["standing"])
        return cls(
            **{**row, "state": None if state is None else State(state), "standing": standing}
        )


@dataclass(frozen=True, slots=True)
class CachedPieces:
    """One cache entry at this moment, with the sums of the bytes that are here."""

    file: CachedFile
    sums: PieceSums
    """Of clean bytes that are at rest: of all of them."""

    def to_json(self) -> dict[str, object]:
        """Return it as what JSON can hold."""
        return {"file": self.file.to_json(), "sums": self.sums.encode().hex()}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` told. Raise ``KeyError``, ``TypeError`` or ``ValueError`` if it did not."""
        return cls(
            CachedFile.from_json(told["file"]), PieceSums.decode(bytes.fromhex(told["sums"]))
        )
