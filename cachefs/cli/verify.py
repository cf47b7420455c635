"""``cachefs verify``: whether the store has what is here, by checksum."""

import argparse
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from cachefs.cli.caches import config_of, one_cache_dir
from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_FAILURES, EXIT_INTERRUPTED, EXIT_UNREACHABLE, explain
from cachefs.cli.jobs import bar
from cachefs.cli.output import complain
from cachefs.cli.parser import Parser, show_mount_options
from cachefs.cli.stores import opened_store, store_config
from cachefs.cli.verify_caches import looked_into, require_same_store
from cachefs.cli.verify_report import Report
from cachefs.client import ControlClient, NoDaemon
from cachefs.config import MountConfig
from cachefs.config.option import Group
from cachefs.config.quantities import parse_duration, parse_size
from cachefs.core.errors import StoreError, UsageError
from cachefs.known import SOCKET_NAME, has_cache
from cachefs.local.hashed import MEMORY_NAME, HashMemory
from cachefs.ops.compare import Comparer, Patience
from cachefs.ops.events import Progress
from cachefs.ops.findings import Finding
from cachefs.ops.globs import Chosen, chosen
from cachefs.ops.throttle import Throttle
from cachefs.ops.verify import DirectoryCheck
from cachefs.ops.verify_cache import CacheCheck, Unanswered
from cachefs.remote.retry import Retrying

_GROUPS: Final = (Group.CACHE, Group.REMOTE)
_MOST_THREADS: Final = 64
_SEGMENT: Final = 256 * 2**20
"""Of large objects that cachefs stores in Swift."""

T = TypeVar("T")


def _configure(parser: Parser) -> None:
    parser.usage = (
        "cachefs verify [MOUNT | --cache-dir DIR [SOURCE]] [options]\n"
        "       cachefs verify --dir DIR DEST [options]"
    )
    parser.description = (
        "Tells which files are not at the store with the same bytes. The store is asked for one listing, and about\n"
        "single objects only where that tells no MD5 of theirs. What was hashed is remembered, so that the next run\n"
        "reads only what has changed since.\n\n"
        "Without --dir the files in a cache are verified: of MOUNT, which is a mountpoint, a [mounts.NAME] or a\n"
        "source, or of the only one there is. What waits for upload is said to, and is no error.\n"
        "--dir verifies the files below DIR against DEST, a source: s3://BUCKET/PREFIX, swift://CONTAINER, …\n\n"
        "What is the same is not listed, unless --all says so. The exit code is 1 if anything is out of sync, and 5\n"
        "if something only waits for its upload."
    )
    parser.add_argument("of", metavar="MOUNT", nargs="?", help="which cache; with --dir: DEST")
    parser.add_argument("more", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--dir", metavar="DIR", help="verify the files below this directory")
    parser.add_argument(
        "--one-way", action="store_true", help="with --dir: pass over what only the store has"
    )
    mending = parser.add_argument_group("of a cache")
    mending.add_argument(
        "--wait",
        action="store_true",
        help="have what waits uploaded, and tell what became of it",
    )
    mending.add_argument(
        "--repair",
        action="store_true",
        help="fetch anew what rotted; queue what the store has lost, never over another version",
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
        help="where to remember what was hashed [in the cache directory; with --dir below the state directory]",
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
    arguments = call.arguments
    if call.as_json and arguments.combined:
        raise UsageError("--json and --combined are two forms of the same — choose one")
    if arguments.dir is None:
        if arguments.one_way:
            raise UsageError(
                "--one-way says how to verify a directory — name one by --dir, or leave it out"
            )
        return _cache(call)
    if arguments.of is None:
        raise UsageError(
            f"where the files of {arguments.dir} should be is missing — for example cachefs verify --dir "
            f"{arguments.dir} s3://BUCKET/PREFIX"
        )
    if arguments.more is not None:
        raise UsageError(f"unexpected argument {arguments.more!r} — see cachefs verify --help")
    if arguments.repair or arguments.wait:
        raise UsageError(
            "--repair and --wait are for a cache — to upload what a directory has, give the list to push:"
            " cachefs verify --json --dir DIR DEST | cachefs push --manifest - DIR DEST"
        )
    return _directory(call)


def _cache(call: Call) -> int:
    _require_no_directory(call)
    cache_dir = one_cache_dir(call)
    if not has_cache(cache_dir):
        raise UsageError(f"there is no cache in {cache_dir} — name a mount, or its --cache-dir")
    config = config_of(call, cache_dir, how=f"cachefs verify --cache-dir {cache_dir} s3://BUCKET")
    paths, threads, comparing = _paths(call), _threads(call), _comparing(call, config)
    with _explained(call, config) as code, contextlib.ExitStack() as stack:
        store = stack.enter_context(opened_store(call, config))
        if call.arguments.repair or call.arguments.wait:
            stack.enter_context(_serving(call, config))
            require_same_store(cache_dir, store.description)
        cached, mends = stack.enter_context(looked_into(cache_dir))
        given = call.arguments.memory
        path = call.environment.absolute(given) if given else cache_dir / MEMORY_NAME
        memory = stack.enter_context(HashMemory(path, is_named=bool(given)))
        comparer = comparing(store)
        check = CacheCheck(
            cache_dir / "data",
            cached,
            store,
            memory,
            comparer,
            chosen=paths,
            threads=threads,
            mends=mends,
            is_repairing=call.arguments.repair,
            is_settling=call.arguments.wait,
        )
        code.value = _reported(call, check.run(), comparer, store)
    return code.value


@dataclass(slots=True)
class _Code:
    value: int = EXIT_FAILURES


@contextmanager
def _explained(call: Call, config: MountConfig) -> Iterator[_Code]:
    """Yield the exit code to be; say why the store could not be asked, if it could not."""
    code = _Code()
    try:
        yield code
    except StoreError as error:
        where = config.store.endpoint_url
        failure = explain(
            error,
            doing=f"cannot verify against {config.source}",
            source=config.source,
            at=f" at {where}" if where else "",
        )
        complain(call.redactor(failure.line))
        code.value = failure.code


def _require_no_directory(call: Call) -> None:
    """Raise ``UsageError`` if what was named can only be the directory that --dir was meant for."""
    of, more = call.arguments.of, call.arguments.more
    if more is not None:
        raise UsageError(
            f"{of} {more} are two — to verify the files of a directory: cachefs verify --dir {of} {more}"
        )


@contextmanager
def _serving(call: Call, config: MountConfig) -> Iterator[None]:
    """Have a daemon behind the cache, if only for this, where none runs."""
    try:
        ControlClient(config.cache_dir / SOCKET_NAME).close()
    except NoDaemon:
        from cachefs.within import answering  # the event loop, only where it is needed

        with answering(config, call.environment):
            yield
    else:
        yield


def _directory(call: Call) -> int:
    root = call.environment.absolute(call.arguments.dir)
    if not root.is_dir():
        raise UsageError(f"{call.arguments.dir} is no directory — name the one to verify")
    config = store_config(call, call.arguments.of)
    paths, threads, comparing = _paths(call), _threads(call), _comparing(call, config)
    with (
        _explained(call, config) as code,
        opened_store(call, config) as store,
        _memory(call, root, store) as memory,
    ):
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
        code.value = _reported(call, check.run(), comparer, store)
    return code.value


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
    except Unanswered as error:
        complain(str(error))
        report.sum_up(comparer.counts, store.requests, is_interrupted=True)
        return EXIT_UNREACHABLE
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
            end_waiting=store.give_up,
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
    with HashMemory(path, is_named=bool(call.arguments.memory)) as memory:
        yield memory


COMMAND = Command(_configure, _run, option_groups=_GROUPS)
