"""What every long job says of itself while it runs, beside its own findings."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is, in all. A total is None as long as nobody knows it, and may grow."""

    files: int
    bytes: int = 0
    total_files: int | None = None
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """One file could not be done; the job goes on with the others."""

    path: str
    """As the job names its files; bytes that are no UTF-8 as surrogates."""
    error: Exception
