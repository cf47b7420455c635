"""``cachefs verify``: whether the store has what is here, by checksum."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_INTERRUPTED
from cachefs.cli.jobs import bar
from cachefs.cli.parser import Parser, show_mount_options
from cachefs.cli.stores import opened_store, store_config
from cachefs.cli.verify_report import Report
from cachefs.config import MountConfig
from cachefs.config.option import Group
from cachefs.config.quantities import parse_duration, parse_size
from cachefs.core.errors import UsageError
from cachefs.local.hashed import HashMemory
from cachefs.ops.compare import Comparer, Patience
from cachefs.ops.events import Progress
from cachefs.ops.findings import Finding
from cachefs.ops.globs import Chosen, chosen
from cachefs.ops.throttle import Throttle
from cachefs.ops.verify import DirectoryCheck
from cachefs.remote.retry import Retrying

_GROUPS: Final = (Group.REMOTE,)
_MOST_THREADS: Final = 64
_SEGMENT: Final = 256 * 2**20
"""Of large objects that cachefs stores in Swift."""

T = TypeVar("T")


def _configure(parser: Parser) -> None:
    parser.usage = "cachefs verify --dir DIR DEST [options]"
    parser.description = (
        "Tells which files are not at the store with the same bytes. The store is asked for one listing, and about\n"
        "single objects only where that tells no MD5 of theirs. What was hashed is remembered, so that the next run\n"
        "reads only what has changed since.\n\n"
        "--dir verifies the files below DIR against DEST, a source: s3://BUCKET/PREFIX, swift://CONTAINER, …\n\n"
        "What is the same is not listed, unless --all says so. The exit code is 1 if anything is out of sync."
    )
    parser.add_argument("of", metavar="DEST", help="where the files should be")
    parser.add_argument("--dir", metavar="DIR", required=True, help="the directory to verify")
    parser.add_argument(
        "--one-way", action="store_true", help="with --dir: pass over what only the store has"
    )
    parser.add_argument("--include", metavar="PATTERN", action="append", default=[], help=_PATTERN)
    parser.add_argument(
        "--exclude", metavar="PATTERN", action="append", default=[], help="leave these out"
    )
    cost = parser.add_argument_group("at which cost")
    cost.add_argument(
        "--full", action="store_true", help="believe nothing that an earlier run has found"
    )
    cost.add_argument(
        "--older-than",
        metavar="TIME",
        help="hash and ask again what was verified longer ago than this: 7d",
    )
    cost.add_argument(
        "--download",
        action="store_true",
        help="read what the store tells neither MD5 nor checksum of",
    )
    cost.add_argument(
        "--threads", metavar="N", default="4", help="files looked at at the same time, 1 to 64 [4]"
    )
    cost.add_argument(
        "--limit-rate", metavar="SIZE", help="bytes to read in a second, at most: 20MB"
    )
    cost.add_argument(
        "--memory",
        metavar="FILE",
        help="where to remember what was hashed [below the state directory]",
    )
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--all", action="store_true", help="list what is the same, too")
    shown.add_argument(
        "--combined",
        action="store_true",
        help="one line a file, as rclone check --combined: = same, * differs, + only here, - only at the store, "
        "! not found out",
    )
    add_json(parser)
    show_mount_options(parser, _GROUPS)


_PATTERN: Final = "only these paths; a pattern as in .gitignore, may be given several times"


def _run(call: Call) -> int:
    if call.as_json and call.arguments.combined:
        raise UsageError("--json and --combined are two forms of the same — choose one")
    return _directory(call)


def _directory(call: Call) -> int:
    root = call.environment.absolute(call.arguments.dir)
    if not root.is_dir():
        raise UsageError(f"{call.arguments.dir} is no directory — name the one to verify")
    config = store_config(call, call.arguments.of)
    paths, threads, comparing = _paths(call), _threads(call), _comparing(call, config)
    with opened_store(call, config) as store, _memory(call, root, store) as memory:
        comparer = comparing(store)
        check = DirectoryCheck(
            str(root),
            store,
            memory,
            comparer,
            chosen=paths,
            threads=threads,
            is_one_way=call.arguments.one_way,
        )
        return _reported(call, check.run(), comparer, store)


def _reported(
    call: Call,
    events: Generator[Finding | Progress, None, None],
    comparer: Comparer,
    store: Retrying,
) -> int:
    """Show what comes, and in the end the sum, also where that is Ctrl-C."""
    report = Report(call)
    is_silent = call.quiet or call.as_json
    try:
        with contextlib.closing(events), bar("verifying", quiet=is_silent) as shown:
            for event in events:
                if isinstance(event, Progress):
                    shown.show(event)
                else:
                    report.tell(event)
    except KeyboardInterrupt:
        comparer.stop()
        report.sum_up(comparer.counts, store.requests, is_interrupted=True)
        return EXIT_INTERRUPTED
    report.sum_up(comparer.counts, store.requests)
    return report.exit_code


# ---- what was asked for ---------------------------------------------------------------------


def _paths(call: Call) -> Chosen:
    return chosen(call.arguments.include, call.arguments.exclude)


def _threads(call: Call) -> int:
    given = call.arguments.threads
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= _MOST_THREADS:
        raise UsageError(
            f"--threads {given} is not a number from 1 to {_MOST_THREADS} — for example --threads 4"
        )
    return int(given)


def _comparing(call: Call, config: MountConfig) -> Callable[[Retrying], Comparer]:
    """Return what makes the comparer of a store, once all that was asked for is known to make sense."""
    arguments = call.arguments
    older_than_s = _read(parse_duration, arguments.older_than, "--older-than", "7d")
    rate = _read(parse_size, arguments.limit_rate, "--limit-rate", "20MB")
    if rate == 0:
        raise UsageError("--limit-rate 0 would never end — for example --limit-rate 20MB")
    patience = Patience(
        is_full=arguments.full,
        older_than_ns=None if older_than_s is None else int(older_than_s * 10**9),
    )
    options = config.store

    def make(store: Retrying) -> Comparer:
        return Comparer(
            store,
            throttle=Throttle(rate),
            patience=patience,
            now_ns=time.time_ns,
            is_downloading=arguments.download,
            likely_parts=(options.part_size, min(_SEGMENT, options.segment_limit)),
        )

    return make


def _read(parse: Callable[[str], T], given: str | None, option: str, example: str) -> T | None:
    if given is None:
        return None
    try:
        return parse(given)
    except ValueError as error:
        raise UsageError(f"{option} {given} {error} — for example {option} {example}") from None


@contextmanager
def _memory(call: Call, root: Path, store: Retrying) -> Iterator[HashMemory]:
    """Open what is remembered of the directory *root* and the store."""
    if call.arguments.memory:
        path = call.environment.absolute(call.arguments.memory)
    else:
        identity = f"{os.path.realpath(root)}\0{store.description}"
        name = hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]
        path = call.environment.state_root / "verify" / f"{name}.sqlite3"
    with HashMemory(path) as memory:
        yield memory


COMMAND = Command(_configure, _run, option_groups=_GROUPS)
