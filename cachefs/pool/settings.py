"""What a pool goes by."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class PoolSettings:
    """What the pool is told, some of which clients may change by SET."""

    bucket: str | None
    """The one bucket there is; None: the first part of each path names one."""
    master: str
    """Where it listens, for STATUS."""
    prefix: str = ""
    """Of the one bucket, what of it there is: keys that begin so, of which the tree has the rest."""
    lease_s: float = 300.0
    push_from: tuple[Path, ...] = ()
    """Directories, without links, from which files may be pushed."""
    readers: int = 0o400
    token: str | None = None
    is_prefix_glob: bool = False
    """GLOB goes by what is in front of the first star or question mark, and by no more, as s3pool's does."""
    pull_concurrency: int = 20
    refresh_interval: int = 5
    """Minutes after which a list is made anew."""
    verbose: int = 0
