"""What went wrong, as one line that says what failed, why and what to do, and as an exit code."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cachefs.client import ControlError
from cachefs.core.errors import (
    CachefsError,
    Denied,
    Fault,
    InUse,
    NoBucket,
    NoRoom,
    StoreError,
    TimedOut,
    Unreachable,
    UsageError,
)
from cachefs.core.source import Source, StoreKind

EXIT_DONE: Final = 0
EXIT_FAILURES: Final = 1
EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3
EXIT_UNREACHABLE: Final = 4
EXIT_WAITING: Final = 5
EXIT_INTERRUPTED: Final = 130

_NO_BUCKET: Final = {
    StoreKind.S3: ("no such bucket", "check the name, or pass --endpoint-url"),
    StoreKind.SWIFT: ("no such container", "check the name, and the account in OS_* or --cloud"),
    StoreKind.FILE: ("no such directory", "create it, or check the name"),
}
_NO_BUCKET_ANYWHERE: Final = ("no such bucket", "check the name, and where it is looked for")
_CREDENTIALS_ANYWHERE: Final = "check the credentials, and what they permit"
_CREDENTIALS: Final = {
    StoreKind.S3: "check AWS_* or --profile, or pass --no-sign-request for a public bucket",
    StoreKind.SWIFT: "check OS_* or ST_*, or name an entry of clouds.yaml by --cloud",
    StoreKind.FILE: "check the permissions of the directory",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of a command that did not work out."""

    line: str
    code: int
    unexpected: bool = False
    """It is our defect, so its traceback belongs into the log."""


def explain(
    error: BaseException, *, doing: str = "", source: Source | None = None, at: str = ""
) -> Failure:
    """Return what to say of *error*, which ended *doing* (``cannot mount s3://photos``).

    *source* is that of the store that has failed; None: it is not known which one, so that the advice holds for any.
    *at* is where the store is, if that is known: `` at http://127.0.0.1:9000``.
    """
    prefix = f"{doing}: " if doing else ""
    for leaf in _leaves(error):
        if isinstance(leaf, KeyboardInterrupt):
            return Failure(f"{prefix}interrupted", EXIT_INTERRUPTED)
    expected = next((leaf for leaf in _leaves(error) if isinstance(leaf, CachefsError)), None)
    strange = next(
        (leaf for leaf in _leaves(error) if not isinstance(leaf, CachefsError | OSError)), None
    )
    if strange is not None:
        return Failure(f"{prefix}{_unexpected(strange)}", EXIT_FAILURES, unexpected=True)
    if expected is not None:
        line, code = _expected(expected, source, at)
        return Failure(f"{prefix}{line}", code)
    problem = next(leaf for leaf in _leaves(error) if isinstance(leaf, OSError))
    return Failure(f"{prefix}{_of_system(problem)}", EXIT_FAILURES)


def _expected(error: CachefsError, source: Source | None, at: str) -> tuple[str, int]:
    if isinstance(error, UsageError | ControlError):
        return str(error), error.exit_code
    if isinstance(error, StoreError):
        return _of_store(error, source.kind if source else None, at)
    reason = _reason(error)
    if isinstance(error, InUse):
        return _advised(
            reason, "unmount that one first, or give this one another --cache-dir"
        ), EXIT_USAGE
    if isinstance(error, NoRoom):
        return _advised(
            reason, "make room on the cache's disk, or raise --cache-size"
        ), EXIT_FAILURES
    return reason, EXIT_FAILURES


def _of_store(error: StoreError, kind: StoreKind | None, at: str) -> tuple[str, int]:
    reason = _reason(error)
    if isinstance(error, NoBucket):
        what, advice = _NO_BUCKET[kind] if kind else _NO_BUCKET_ANYWHERE
        return f"{what}{at} — {advice}", EXIT_REFUSED
    if isinstance(error, Denied):
        return _advised(
            f"access denied{at}: {reason}", _CREDENTIALS[kind] if kind else _CREDENTIALS_ANYWHERE
        ), EXIT_REFUSED
    if isinstance(error, Unreachable):
        said = _advised(
            f"cannot reach the store{at}: {reason}", "check the address and the network"
        )
        return said, EXIT_UNREACHABLE
    if isinstance(error, TimedOut):
        said = _advised(
            f"no answer in time{at}: {reason}", "check the network, or raise --timeout"
        )
        return said, EXIT_UNREACHABLE
    if isinstance(error, Fault):
        return _advised(f"the store failed{at}: {reason}", "try again later"), EXIT_UNREACHABLE
    return f"the store refused{at}: {reason}", EXIT_REFUSED


def _advised(line: str, advice: str) -> str:
    """Return *line* with *advice*, unless it comes with some of its own."""
    return line if "—" in line or not advice else f"{line} — {advice}"


def _of_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _unexpected(error: BaseException) -> str:
    first = str(error).strip().splitlines()[:1]
    return f"unexpected {type(error).__name__}{f': {first[0]}' if first else ''} — a defect; -v shows where"


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
