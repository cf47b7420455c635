"""``cachefs cache check``: whether a cache is sound, by itself, without asking the store."""

import contextlib
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cachefs.cli.caches import Live, cache_dirs
from cachefs.cli.command import Call
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES
from cachefs.cli.jobs import bar
from cachefs.cli.output import counted, human_size, on_one_line, say, say_json
from cachefs.client import ControlClient, NoDaemon
from cachefs.core.errors import UsageError
from cachefs.known import SOCKET_NAME
from cachefs.local.directory import CacheDirectory
from cachefs.local.tables import Stopped
from cachefs.ops.check_cache import CacheCheck, Checked, Flaw, Kind, Mends, Repair
from cachefs.ops.events import Progress

_DONE = {
    Repair.DROPPED: "given up; the next read fetches it again",
    Repair.REBUILT: "set aside, and a new one made from what lies beside it",
    Repair.TAKEN_UP: "taken up again, or removed where nobody needs it",
}
_UNMOUNT = "unmount it, and run cachefs cache check --repair again"
_NEXT_MOUNT = "the next mount puts that right"


@dataclass(slots=True)
class _Report:
    """What was found in one cache directory."""

    cache_dir: Path
    is_served: bool
    flaws: list[Flaw] = field(default_factory=list)
    looked: Checked | None = None
    """None: the database is damaged, so that nothing could be held against it."""

    @property
    def left(self) -> int:
        """How much is wrong, and stays so."""
        return sum(flaw.repair is None for flaw in self.flaws)


def run(call: Call) -> int:
    """Check what is meant, and tell it."""
    reports = []
    for cache_dir in _meant(call):
        report = _checked(call, cache_dir)
        reports.append(report)
        if not call.as_json:
            _tell(call, report)
    if call.as_json:
        say_json({"caches": [_document(report) for report in reports]})
    elif not reports and not call.quiet:
        say("no cache directory is known")
    return EXIT_FAILURES if any(report.left for report in reports) else EXIT_DONE


def _meant(call: Call) -> list[Path]:
    """Return the cache directories that are meant; one that was named may have lost its database."""
    given = next((s.value for s in reversed(call.given.settings) if s.name == "cache-dir"), None)
    if given is not None:
        if call.arguments.of:
            raise UsageError("name a mount or a --cache-dir, not both")
        cache_dir = call.environment.absolute(given)
        if (cache_dir / "data").is_dir():
            return [cache_dir]
    return cache_dirs(call)


def _checked(call: Call, cache_dir: Path) -> _Report:
    try:
        client = ControlClient(cache_dir / SOCKET_NAME)
    except NoDaemon:
        return _checked_alone(call, cache_dir)
    with client:
        report = _Report(cache_dir, is_served=True)
        mends = _ByDaemon(Live(client)) if call.arguments.repair else None
        _look(call, report, mends)
    if call.arguments.repair:
        report.flaws = [_advised(flaw) for flaw in report.flaws]
    return report


def _checked_alone(call: Call, cache_dir: Path) -> _Report:
    """Check a cache that no daemon has, and keep every daemon away meanwhile."""
    report = _Report(cache_dir, is_served=False)
    with contextlib.closing(CacheDirectory(cache_dir)):
        _look(call, report, None)
    if call.arguments.repair and report.flaws:
        _repair_alone(report)
    return report


def _look(call: Call, report: _Report, mends: Mends | None) -> None:
    check = CacheCheck(report.cache_dir, is_served=report.is_served, mends=mends)
    quiet = call.quiet or call.as_json
    try:
        with bar("checking", quiet=quiet) as shown, contextlib.closing(check.run()) as events:
            for event in events:
                match event:
                    case Flaw():
                        report.flaws.append(event)
                    case Progress():
                        shown.show(event)
                    case Checked():
                        report.looked = event
    except Stopped:
        raise KeyboardInterrupt from None


# ---- mending ------------------------------------------------------------------------------------


class _ByDaemon:
    """What the daemon of a cache can do about it."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def drop(self, flaw: Flaw) -> bool:
        """Give up the clean bytes of a file. False: it is another version by now."""
        if flaw.entry is None or flaw.etag is None:
            return False
        return self._live.refetch(flaw.entry, flaw.etag)


def _advised(flaw: Flaw) -> Flaw:
    """Say what can be done about what the daemon could not mend."""
    if flaw.repair is not None or flaw.advice:
        return flaw
    return replace(flaw, advice=_UNMOUNT if flaw.kind is Kind.DATABASE else _NEXT_MOUNT)


def _repair_alone(report: _Report) -> None:
    """Open the cache as a mount would, which sets a database aside that is condemned, and drop what is broken."""
    from cachefs.engine.recovery import open_cache
    from cachefs.local.db import NAME
    from cachefs.local.soundness import Soundness

    damage = [flaw for flaw in report.flaws if flaw.kind is Kind.DATABASE]
    if damage:
        Soundness(report.cache_dir / NAME).condemn(damage[0].what)
    with open_cache(report.cache_dir) as cache:
        for place, flaw in enumerate(report.flaws):
            if flaw.kind is Kind.DATABASE:
                report.flaws[place] = replace(flaw, repair=Repair.REBUILT)
            elif flaw.kind is Kind.STRAY:
                report.flaws[place] = replace(flaw, repair=Repair.TAKEN_UP)
            elif not flaw.is_owed and flaw.entry is not None:
                cache.give_up(flaw.entry, flaw.etag)  # where it is not gone already
                report.flaws[place] = replace(flaw, repair=Repair.DROPPED)


# ---- telling --------------------------------------------------------------------------------------


def _document(report: _Report) -> dict[str, object]:
    looked = report.looked
    return {
        "cache_dir": str(report.cache_dir),
        "is_served": report.is_served,
        "names": None if looked is None else looked.names,
        "files": None if looked is None else looked.files,
        "bytes": None if looked is None else looked.bytes,
        "flaws": [asdict(flaw) for flaw in report.flaws],
        "left": report.left,
    }


def _tell(call: Call, report: _Report) -> None:
    for flaw in report.flaws:
        say(_line(flaw))
    if call.quiet:
        return
    kinds = Counter(str(flaw.kind) for flaw in report.flaws)
    found = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "sound"
    mended = len(report.flaws) - report.left
    found += f" ({mended} mended)" if mended else ""
    if report.looked is None:
        say(
            f"{report.cache_dir}: {found}; the files were not looked at, for the database is not sound"
        )
        return
    looked = report.looked
    say(
        f"{report.cache_dir}: {found}; {counted(looked.names, 'name')}, {counted(looked.files, 'cache file')},"
        f" {human_size(looked.bytes)} looked at"
    )
    if report.left and not call.arguments.repair:
        say("cachefs cache check --repair mends what can be mended; dirty bytes are never dropped")


def _line(flaw: Flaw) -> str:
    words = f"{on_one_line(flaw.path)}: {flaw.what}" if flaw.path else f"database: {flaw.what}"
    told = _DONE[flaw.repair] if flaw.repair is not None else flaw.advice
    return f"{words} — {told}" if told else words
