"""``cachefs preheat``: fills the cache before programs ask."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import BinaryIO, Final, Self, TypeVar

from cachefs.cli import survey
from cachefs.cli.caches import one_cache_dir, opened
from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import (
    EXIT_DONE,
    EXIT_FAILURES,
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    explain,
)
from cachefs.cli.jobs import Bar, bar
from cachefs.cli.output import complain, counted, human_size, printable, say, say_json
from cachefs.cli.parser import Parser, show_mount_options
from cachefs.cli.survey import daemon_of
from cachefs.client import ControlClient, ControlError, NoDaemon
from cachefs.config.option import Group
from cachefs.config.quantities import parse_patience, parse_size
from cachefs.core.errors import Fault, UsageError
from cachefs.core.heat import Heated, Presence
from cachefs.core.history import Accessed
from cachefs.core.policy import LOW_WATER
from cachefs.known import has_cache
from cachefs.local.sorting import Ordering
from cachefs.ops import preheat
from cachefs.ops.events import Failed, Progress
from cachefs.ops.globs import chosen
from cachefs.ops.manifest import rows
from cachefs.ops.preheat import Budget, By, Ready, Share, Stopped, Wanted

_GROUPS: Final = (Group.CACHE, Group.READING, Group.REMOTE)
_MOST_THREADS: Final = 32
"""A daemon talks to twice as many callers at a time, and others want to ask it, too."""
_LONGEST_ANSWER_S: Final = 3600.0
"""An answer comes after seconds; only where every try of a very long --timeout fails it is later."""

T = TypeVar("T")


def _configure(parser: Parser) -> None:
    parser.usage = (
        "cachefs preheat [MOUNT] [--by last|frequency|yesterday] [options]\n"
        "       cachefs preheat [MOUNT] --from-dir DIR | --list FILE [options]\n"
        "       cachefs preheat [MOUNT or directory in it] --metadata"
    )
    parser.description = (
        "Fetches files into the cache before programs ask for them: whole, in the order that is named, until\n"
        "the budget or the room is used up. What is cached already is not fetched again. The order is that of\n"
        "the opens that the cache remembers, of the times of access in another tree, or of a list.\n\n"
        "MOUNT is a mountpoint, a [mounts.NAME] or a source; it can be left out where there is only one. A running\n"
        "mount does the fetching. Where none runs, the cache directory is opened for as long as this takes, so\n"
        "that a mount which starts later finds it warm. Nothing is evicted for it, unless --evict says so.\n\n"
        "The exit code is 1 if files could not be fetched, 4 if the store stopped answering."
    )
    parser.add_argument("of", metavar="MOUNT", nargs="?", help="which cache to fill")
    order = parser.add_argument_group("what to fetch, in which order")
    order.add_argument(
        "--by",
        choices=[each.value for each in By],
        help="of what was opened in this cache: last: the last opened first (the default). frequency: the most often "
        "opened first. yesterday: what was opened yesterday, the most often opened first. With --list, last: by the "
        "atime that the list has",
    )
    order.add_argument(
        "--from-dir",
        metavar="DIR",
        help="the files that this directory tree has, the last read first, by their times of access",
    )
    order.add_argument(
        "--list",
        metavar="FILE",
        help="the files that FILE lists (- is standard input), in its order: a path a line, paths that end in NUL, "
        "JSON lines, or a JSON object of paths",
    )
    order.add_argument("-0", "--null", action="store_true", help="paths of --list end in NUL")
    order.add_argument("--include", metavar="PATTERN", action="append", default=[], help=_PATTERN)
    order.add_argument(
        "--exclude", metavar="PATTERN", action="append", default=[], help="leave these out"
    )
    order.add_argument(
        "--metadata",
        action="store_true",
        help="no file, but the names, sizes and times of all that is below the directory, by one listing of all keys: a "
        "request for a thousand of them, however many directories they are in",
    )
    much = parser.add_argument_group("how much")
    much.add_argument(
        "--bytes",
        metavar="SIZE",
        help="the first files of the order that have so many bytes together, cached ones among them",
    )
    much.add_argument("--files", metavar="N", help="the first N files of the order")
    much.add_argument("--until", metavar="TIME", help="begin nothing more after this time: 30m")
    much.add_argument(
        "--evict", action="store_true", help="let other files go for it, where the cache is full"
    )
    parser.add_argument(
        "--threads", metavar="N", default="8", help="files fetched at the same time, 1 to 32 [8]"
    )
    parser.add_argument(
        "--check", action="store_true", help="fetch nothing: tell what share is cached"
    )
    add_json(parser)
    show_mount_options(parser, _GROUPS)


_PATTERN: Final = "only these paths; a pattern as in .gitignore, may be given several times"


def _run(call: Call) -> int:
    arguments = call.arguments
    if arguments.metadata:
        return survey.run(call)
    budget, threads = _budget(call), _number(arguments.threads, "--threads", _MOST_THREADS)
    tally = _Tally()
    with _ordered(call, tally) as (wanted, totals):
        if arguments.check:
            _check(call, wanted, budget)
            return tally.code
        with contextlib.ExitStack() as stack:
            try:
                cache = stack.enter_context(_cache(call))
                if arguments.evict:
                    budget = _within(budget, cache.capacity())
                _fill(call, tally, cache, wanted, budget, threads, totals)
            except KeyboardInterrupt:
                tally.code = EXIT_INTERRUPTED
            except Fault as error:
                complain(call.redactor(explain(error).line))
                tally.code = EXIT_UNREACHABLE
        _tell(call, tally)
        return tally.code


# ---- what was asked for ---------------------------------------------------------------------


def _budget(call: Call) -> Budget:
    arguments = call.arguments
    files = arguments.files
    return Budget(
        bytes=_read(parse_size, arguments.bytes, "--bytes", "50GiB"),
        files=None if files is None else _number(files, "--files", 2**63),
        seconds=_read(parse_patience, arguments.until, "--until", "30m"),
    )


def _read(parse: Callable[[str], T], given: str | None, option: str, example: str) -> T | None:
    if given is None:
        return None
    try:
        return parse(given)
    except ValueError as error:
        raise UsageError(f"{option} {given} {error} — for example {option} {example}") from None


def _number(given: str, option: str, most: int) -> int:
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= most:
        bound = f" up to {most}" if most < 2**31 else ""
        raise UsageError(f"{option} {given} is not a number{bound} — for example {option} 8")
    return int(given)


Totals = tuple[int | None, int | None]


@contextlib.contextmanager
def _ordered(call: Call, tally: "_Tally") -> Iterator[tuple[Iterator[Wanted], Totals]]:
    """Yield the files that are wanted, in their order, and how many they are, if that is known.

    What cannot be looked at is said, and counted as failed.
    """
    arguments = call.arguments
    _check_order(call)
    paths = chosen(arguments.include, arguments.exclude)
    with contextlib.ExitStack() as stack:
        ordering = stack.enter_context(Ordering())
        if arguments.list is not None:
            stream = stack.enter_context(_stream(call, arguments.list))
            name = "standard input" if arguments.list == "-" else arguments.list
            named = rows(stream, name=name, null=arguments.null)
            if arguments.by is None:
                yield preheat.listed(named, paths, now_ns=time.time_ns()), (None, None)
                return
            preheat.listed_by_access(named, paths, ordering)
        elif arguments.from_dir is not None:
            root = call.environment.absolute(arguments.from_dir)
            for failed in preheat.tree(root, paths, ordering):
                tally.failed += 1
                tally.code = EXIT_FAILURES
                complain(printable(f"cannot look at {failed.path}: {_reason_of(failed.error)}"))
        else:
            today = date.today().toordinal()
            by = By(arguments.by or By.LAST)
            with _history(call) as history:
                preheat.remembered(history, by, paths, ordering, today=today)
        yield preheat.in_order(ordering), ordering.totals()


def _reason_of(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _check_order(call: Call) -> None:
    arguments = call.arguments
    if arguments.check and (arguments.until or arguments.evict):
        raise UsageError("--check fetches nothing — leave out --until and --evict")
    if arguments.from_dir is not None and (arguments.list is not None or arguments.by):
        raise UsageError(
            "--from-dir is an order of its own — leave out --list and --by, or --from-dir"
        )
    if arguments.list is not None and arguments.by not in {None, By.LAST}:
        raise UsageError(f"--by {arguments.by} is of the history — with --list, only --by last")
    if arguments.null and arguments.list is None:
        raise UsageError("--null says how to read --list — pass one, or leave it out")


@contextlib.contextmanager
def _history(call: Call) -> Iterator[Iterator[Accessed]]:
    """Yield what the cache remembers of opens."""
    cache_dir = one_cache_dir(call)
    if not has_cache(cache_dir):
        raise UsageError(
            f"there is no cache in {cache_dir} that remembers opens — name an order by --from-dir or --list"
        )
    with opened(cache_dir) as held:
        yield held.history()


@contextlib.contextmanager
def _stream(call: Call, name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        with call.environment.absolute(name).open("rb") as stream:
            yield stream
    except IsADirectoryError:
        raise UsageError(
            f"--list {name} is a directory — for a tree, pass --from-dir {name}"
        ) from None
    except OSError as error:
        raise UsageError(
            f"--list {name} cannot be read: {error.strerror} — name a list of files"
        ) from None


# ---- the cache ------------------------------------------------------------------------------


class _Unanswered(Fault):
    """The daemon is gone, or the store does not answer it."""


class _Asked:
    """A daemon, asked by each thread over a connection of its own."""

    def __init__(self, socket: Path, *, may_evict: bool) -> None:
        self._socket = socket
        self._may_evict = may_evict
        self._own = threading.local()
        self._lock = threading.Lock()
        self._clients: list[ControlClient] = []
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for client in self._clients:
            client.close()

    def capacity(self) -> int:
        """Return the bytes that stay when other files are evicted for them."""
        status = self._ask("status")
        cache = status.get("cache") if isinstance(status, dict) else None
        limit = cache.get("limit") if isinstance(cache, dict) else None
        return int(limit * LOW_WATER) if isinstance(limit, int) else 0

    def look(self, path: str) -> Heated:
        """Tell of a file as the store has it."""
        return _heated(self._ask("look", path=path))

    def heat(self, path: str, used_ns: int) -> Heated:
        """Have some of a file fetched."""
        answer = self._ask("preheat", path=path, used_ns=max(0, used_ns), evict=self._may_evict)
        return _heated(answer)

    def end(self) -> None:
        """Let every thread go that waits for an answer."""
        with self._lock:
            self._is_over = True
            for client in self._clients:
                client.wake()

    def _ask(self, verb: str, **arguments: object) -> object:
        try:
            return self._client().ask(verb, timeout_s=_LONGEST_ANSWER_S, **arguments)
        except NoDaemon as error:
            raise _Unanswered(str(error)) from error
        except ControlError as error:
            if error.exit_code == EXIT_UNREACHABLE:
                raise _Unanswered(str(error)) from error
            raise

    def _client(self) -> ControlClient:
        client: ControlClient | None = getattr(self._own, "client", None)
        if client is None:
            with self._lock:
                if self._is_over:
                    raise _Unanswered("the job is over")
                client = self._own.client = ControlClient(self._socket)
                self._clients.append(client)
        return client


def _heated(answer: object) -> Heated:
    try:
        return Heated.from_json(answer)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError):
        raise ControlError("the daemon's answer is not one") from None


@contextlib.contextmanager
def _cache(call: Call) -> Iterator[_Asked]:
    """Yield the cache that is meant, behind its daemon, or behind one that lives as long as the block."""
    cache_dir = one_cache_dir(call)
    with (
        daemon_of(call, cache_dir) as socket,
        _Asked(socket, may_evict=call.arguments.evict) as asked,
    ):
        yield asked


def _within(budget: Budget, capacity: int) -> Budget:
    """Return *budget* with no more bytes than the cache keeps, for what comes later would evict what came before."""
    least = capacity if budget.bytes is None else min(budget.bytes, capacity)
    return Budget(bytes=least, files=budget.files, seconds=budget.seconds)


# ---- doing it -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    fetched_files: int = 0
    fetched_bytes: int = 0
    there: int = 0
    failed: int = 0
    stopped: Stopped | None = None
    code: int = EXIT_DONE
    began: float = field(default_factory=time.monotonic)


def _fill(
    call: Call,
    tally: _Tally,
    cache: _Asked,
    wanted: Iterator[Wanted],
    budget: Budget,
    threads: int,
    totals: Totals,
) -> None:
    events = preheat.preheat(wanted, cache, budget=budget, threads=threads, totals=totals)
    quiet = call.quiet or call.as_json
    with bar("preheating", quiet=quiet) as shown, contextlib.closing(events):
        for event in events:
            _note(call, tally, event, shown)


def _note(call: Call, tally: _Tally, event: preheat.Event, shown: Bar) -> None:
    match event:
        case Progress():
            shown.show(event)
        case Ready(path, size, fetched):
            tally.fetched_files += fetched > 0
            tally.fetched_bytes += fetched
            tally.there += not fetched
            _tell_file(call, path, "fetched" if fetched else "cached", size=size, fetched=fetched)
        case Failed(path, error):
            tally.failed += 1
            tally.code = EXIT_FAILURES
            reason = call.redactor(_reason(error))
            _tell_file(call, path, "failed", error=reason)
            complain(printable(f"{path} cannot be fetched: {reason}"))
        case Stopped():
            tally.stopped = event
            if event.path is not None:
                _tell_file(call, event.path, "left", error=event.reason)


def _reason(error: Exception) -> str:
    return str(error) or explain(error).line


def _tell_file(call: Call, path: str, state: str, **more: object) -> None:
    if call.as_json:
        say_json({"path": path, "state": state, **more}, stream=True)
    elif call.verbose and state != "failed":
        say(f"{state:8} {path}")


def _tell(call: Call, tally: _Tally) -> None:
    """Say in sum what was done."""
    took_s = max(time.monotonic() - tally.began, 1e-3)
    rate = human_size(int(tally.fetched_bytes / took_s))
    line = (
        f"{counted(tally.fetched_files, 'file')} fetched ({human_size(tally.fetched_bytes)}, {rate}/s), "
        f"{tally.there} cached already, {tally.failed} failed"
    )
    if tally.stopped is not None:
        at = f" at {tally.stopped.path}" if tally.stopped.path else ""
        line += f"; stopped{at}: {tally.stopped.reason}"
    if tally.code == EXIT_INTERRUPTED:
        line += "; interrupted"
    if call.as_json:
        if not call.quiet:
            print(printable(line), file=sys.stderr)
    elif not call.quiet:
        say(line)


# ---- looking --------------------------------------------------------------------------------


def _check(call: Call, wanted: Iterator[Wanted], budget: Budget) -> None:
    found = Share()
    with _looking(call) as ask, bar("checking", quiet=call.quiet or call.as_json) as shown:
        for event in preheat.share(wanted, ask, budget):
            if isinstance(event, Share):
                found = event
            else:
                shown.show(event)
    if call.as_json:
        say_json(
            {
                "files": found.files,
                "cached_files": found.cached_files,
                "bytes": found.bytes,
                "cached_bytes": found.cached_bytes,
                "files_of_unknown_size": found.unknown,
            }
        )
        return
    unknown = f"; the sizes of {found.unknown} are not known" if found.unknown else ""
    say(
        f"{found.cached_files} of {counted(found.files, 'file')} cached{_percent(found.cached_files, found.files)}, "
        f"{human_size(found.cached_bytes)} of {human_size(found.bytes)}"
        f"{_percent(found.cached_bytes, found.bytes)}{unknown}"
    )


def _percent(part: int, whole: int) -> str:
    return f" ({100 * part / whole:.1f}%)" if whole else ""


@contextlib.contextmanager
def _looking(call: Call) -> Iterator[Callable[[Sequence[str]], Sequence[Presence]]]:
    """Yield how to ask what is in the cache."""
    cache_dir = one_cache_dir(call)
    if not has_cache(cache_dir):
        yield lambda paths: [Presence(None, 0) for _ in paths]
        return
    with opened(cache_dir) as held:
        yield held.presence


COMMAND = Command(_configure, _run, option_groups=_GROUPS)
