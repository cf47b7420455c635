"""``cachefs pin`` and ``unpin``: files that are fetched and kept, whatever else the cache is asked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES, EXIT_INTERRUPTED
from cachefs.cli.jobs import bar
from cachefs.cli.output import complain, counted, human_size, printable, say, say_json
from cachefs.cli.parser import Parser
from cachefs.client import ControlClient, ControlError
from cachefs.core.pins import Pinned, Pinning
from cachefs.live import mount_containing
from cachefs.ops.events import Progress

_LONGEST_LISTING_S: Final = 86400.0


def _configure(parser: Parser) -> None:
    parser.usage = "cachefs pin PATH... [--no-wait]"
    parser.description = (
        "Fetches files, whole, and keeps them in the cache: no eviction and no cachefs prune takes them. A directory\n"
        "stands for all files that are in it, and below, at this moment. A pin outlives restarts and renames, and is\n"
        "the name's: what is renamed onto a pinned file is pinned, and a new version of the object is fetched when\n"
        "the mount sees it. It ends with cachefs unpin, or when the file is removed.\n\n"
        "At most 85% of the cache can be pinned; what would be more is refused, and then nothing is pinned. Without\n"
        "--no-wait it returns when all is here. getfattr -n user.cachefs.pinned PATH tells 1 of what is pinned.\n"
        "The exit code is 1 if something was refused, or cannot be fetched yet."
    )
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="a file or a directory in a running mount"
    )
    parser.add_argument(
        "--no-wait", action="store_true", help="return at once; the daemon fetches all the same"
    )
    add_json(parser)


@dataclass(slots=True)
class _Told:
    """What is to be said of one path."""

    path: str
    files: int
    bytes: int


@dataclass(slots=True)
class _Tally:
    done: list[_Told] = field(default_factory=list)
    turns: dict[str, int] = field(default_factory=dict)
    """Of each socket: which turn fetches what was pinned through it."""
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    failures: int = 0
    is_interrupted: bool = False

    @property
    def code(self) -> int:
        if self.is_interrupted:
            return EXIT_INTERRUPTED
        return EXIT_FAILURES if self.refused or self.failures else EXIT_DONE


def _run(call: Call) -> int:
    tally = _Tally()
    with _summed_up(call, tally, "pinned"):
        _ask_all(call, tally, "pin")
        if not call.arguments.no_wait:
            _wait(call, tally)
    return tally.code


def run_unpin(call: Call) -> int:
    """Let files go that were pinned."""
    tally = _Tally()
    with _summed_up(call, tally, "unpinned"):
        _ask_all(call, tally, "unpin")
    return tally.code


def _ask_all(call: Call, tally: _Tally, verb: str) -> None:
    for path in call.arguments.paths:
        running, relative = mount_containing(path, call.environment)
        with ControlClient(Path(running.socket)) as client:
            try:
                answer = client.ask(verb, path=relative, timeout_s=_LONGEST_LISTING_S)
            except ControlError as error:
                if error.exit_code != EXIT_FAILURES:
                    raise
                tally.refused[path] = str(error)
                continue
        pinning = _read(Pinning.from_json, answer)
        tally.done.append(_Told(path, pinning.files, pinning.bytes))
        tally.turns[running.socket] = pinning.turn


def _wait(call: Call, tally: _Tally) -> None:
    """Return when each daemon has fetched what was pinned, or has failed to."""
    with bar("fetching", quiet=call.quiet or call.as_json) as shown:
        for socket, turn in tally.turns.items():
            with ControlClient(Path(socket)) as client:
                told = first = _read(Pinned.from_json, client.ask("pins", turn=0))
                while told.turn < turn:
                    fetched = told.fetched - first.fetched
                    shown.show(Progress(told.looked_at, fetched, told.files))
                    told = _read(Pinned.from_json, client.ask("pins", turn=turn))
            tally.failed |= told.failed
            tally.failures += told.failures


def _read(read: Callable[[Any], Any], answer: object) -> Any:  # noqa: ANN401 - what *read* returns
    try:
        return read(answer)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ControlError("the daemon's answer is not one") from None


@contextmanager
def _summed_up(call: Call, tally: _Tally, deed: str) -> Iterator[None]:
    """Say in the end what was done, however it ends."""
    try:
        yield
    except KeyboardInterrupt:
        tally.is_interrupted = True
    for path, why in tally.refused.items():
        complain(printable(f"{path} was not {deed}: {call.redactor(why)}"))
    for path, why in tally.failed.items():
        complain(printable(f"{path} is pinned, but cannot be fetched yet: {call.redactor(why)}"))
    if tally.failures > len(tally.failed):
        complain(f"{tally.failures - len(tally.failed)} more cannot be fetched yet")
    if call.as_json:
        say_json(
            {
                deed: [{"path": e.path, "files": e.files, "bytes": e.bytes} for e in tally.done],
                "refused": tally.refused,
                "failed": tally.failed,
            }
        )
    elif not call.quiet:
        for each in tally.done:
            say(f"{each.path}: {counted(each.files, 'file')} {deed} ({human_size(each.bytes)})")
        if tally.is_interrupted:
            say("interrupted; what is pinned is fetched all the same")


COMMAND = Command(_configure, _run)
