"""What the control socket asks of the service behind a mount."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from cachefs.core.known_md5 import KnownMd5
from cachefs.core.types import EntryId
from cachefs.engine.leases import Leased
from cachefs.engine.paths import Paths


class Controlled(Protocol):
    """A service, as far as the socket needs it."""

    @property
    def paths(self) -> Paths:
        """Operations on files and directories by their paths."""
        ...

    def status(self) -> Mapping[str, object]:
        """Return everything that ``cachefs status`` tells, fit for JSON."""
        ...

    async def flush(self, paths: Sequence[str], *, wait: bool) -> Mapping[str, object]:
        """Upload now what is dirty at or below *paths* (relative to the root; none: everything)."""
        ...

    async def drain(self, *, timeout_s: float) -> Sequence[Mapping[str, object]]:
        """Take no more writes, upload everything, and return what is left after *timeout_s*."""
        ...

    def resume(self) -> None:
        """Take writes again, after a drain that did not end in an unmount."""
        ...

    def entries(self, after: int) -> Sequence[Mapping[str, object]]:
        """Return some files in the cache whose numbers follow *after*; none: there are no more."""
        ...

    def entry(self, entry_id: int, /) -> Mapping[str, object] | None:
        """Return one of them as it is now, with the sums of its bytes; None: it is gone."""
        ...

    async def refetch(self, entry_id: int, etag: str, /) -> bool:
        """Give up the clean bytes of a file if they are still of version *etag*, so that they are fetched anew."""
        ...

    async def store_anew(self, entry_id: int, etag: str, /) -> bool:
        """Queue the clean bytes of a file, if they are still of version *etag*, whose object is gone."""
        ...

    async def vacuum(self) -> Mapping[str, object]:
        """Give back what is unused in the database; tell its size before and after, and whether it is possible."""
        ...

    def keep_md5s(self, found: Sequence[KnownMd5], /) -> None:
        """Keep MD5s of versions of objects of this store."""
        ...

    def remove_md5(self, bucket: str, key: str, /) -> int:
        """Forget what is kept of an object, by the key that the store has. Return how much that was."""
        ...

    def forget_md5s(self, bucket: str | None, /) -> int:
        """Forget some of the MD5s of a bucket, or of all. Return how many: none when nothing is left."""
        ...

    def presence(self, paths: Sequence[str]) -> Sequence[tuple[int | None, int]]:
        """Return size (None: not known) and cached bytes of each of *paths*, without asking the store."""
        ...

    async def explain(self, path: str, /) -> Mapping[str, object]:
        """Return all that is known of *path* (relative to the root), and what the store says of it now."""
        ...

    async def refresh(self, path: str, /) -> int:
        """Forget, here and in the kernel, what is known of *path* and below. Return of how many names."""
        ...

    async def look(self, path: str, /) -> Mapping[str, object]:
        """Tell how much of the file *path* is here, and fetch nothing."""
        ...

    async def preheat(
        self, path: str, /, *, used_ns: int, may_evict: bool
    ) -> Mapping[str, object]:
        """Fetch some of what is missing of the file *path*, which counts as last used at *used_ns*."""
        ...

    async def survey(self, path: str, /) -> Mapping[str, object]:
        """Make known all that is below the directory *path*, by one listing; tell how far that is."""
        ...

    def history(self, after: int) -> Mapping[str, object]:
        """Return what is remembered of the opens of some files that follow *after*, and where to go on."""
        ...

    async def lease(
        self, path: str, /, *, seconds: float, patience_s: float, only_here: bool
    ) -> Leased | None:
        """Give the whole file *path* out, to be read at a path for so many seconds. None: it is not here in time."""
        ...

    def renew(self, lease: str, /, *, seconds: float) -> None:
        """Let a lease last for so many seconds from now."""
        ...

    async def release(self, lease: str, /) -> None:
        """End a lease, which may be over already."""
        ...

    async def pin(self, path: str, /) -> Mapping[str, object]:
        """Keep the file *path*, or all files at or below the directory *path*; fetch them beside the serving."""
        ...

    async def unpin(self, path: str, /) -> Mapping[str, object]:
        """Let the file *path*, or all files at or below the directory *path*, be evicted like any other."""
        ...

    async def pins(self, turn: int, /) -> Mapping[str, object]:
        """Tell how far the fetching of pinned files is: when *turn* is over, or a little later."""
        ...

    async def evict(self, files: Sequence[tuple[EntryId, int]], /) -> Sequence[int | str]:
        """Drop cached files, each named by its number and its last use, unless anybody needs them.

        Return for each the bytes that are free now, or why it stays.
        """
        ...

    async def give_up(self, path: str, /) -> None:
        """Drop the cached bytes of the file *path*. Raise ``UsageError`` with the reason where somebody needs them."""
        ...

    def dirty(self) -> Sequence[Mapping[str, object]]:
        """Return every file that waits for upload, with its id."""
        ...

    async def export(self, entry_id: int, target: Path, /) -> None:
        """Write the bytes of the waiting file *entry_id* to *target*, which must not exist."""
        ...

    async def discard(self, entry_id: int, /) -> None:
        """Give up the changes of the waiting file *entry_id*."""
        ...

    async def upload(self, entry_id: int, /) -> str:
        """Store the waiting file *entry_id*, under a name beside its own if it was set aside; return its path."""
        ...
