"""How a pool of local files is kept: by ``cachefs pool``, or by a mount beside its other doors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Everything that was said about one pool, checked."""

    home: Path
    """Absolute: ``data/``, ``tmp/`` and the socket are below it."""
    port: int | None
    """None: it answers at its socket alone; 0: at any port that is free."""
    lease_s: float
    push_from: tuple[Path, ...]
    umask: int
    """Who may not read what it shows."""
    listen: str = LOOPBACK
    token: str | None = None
    concurrency: int = 20
    refresh_interval: int = 5
    is_prefix_glob: bool = False
