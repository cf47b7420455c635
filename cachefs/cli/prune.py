"""``cachefs prune``: brings a cache below a threshold, by a policy."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from cachefs.cli.caches import one_cache_dir, opened
from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES, EXIT_INTERRUPTED
from cachefs.cli.jobs import Bar, bar
from cachefs.cli.output import counted, human_size, printable, say, say_json
from cachefs.cli.parser import Parser, show_mount_options
from cachefs.config.option import Group
from cachefs.config.quantities import parse_duration, parse_size
from cachefs.core.cached import CachedFile, CacheUsage
from cachefs.core.errors import UsageError
from cachefs.core.eviction import Policy
from cachefs.core.expression import Expression, parse
from cachefs.local.hashed import MEMORY_NAME, HashMemory, Stamp, cached_path
from cachefs.ops import prune
from cachefs.ops.events import Progress
from cachefs.ops.levels import Level, Usage, default_target, parse_level

_GROUPS: Final = (Group.CACHE,)


def _configure(parser: Parser) -> None:
    parser.usage = (
        "cachefs prune [MOUNT] [--threshold LEVEL] [--to LEVEL] [--policy POLICY] [options]"
    )
    parser.description = (
        "Removes files from a cache that is fuller than --threshold, until it is down to --to. Never what waits for\n"
        "upload, is open, or is pinned: with a mount running, its daemon looks at each file once more at the moment\n"
        "in which it would go. Nothing is removed from the store.\n\n"
        "A LEVEL is 90% (of the cache's size), 40GiB (that the cache takes), disk:90% (of the cache's disk), or\n"
        "free:20GiB or free:10% (that the disk has left).\n\n"
        "A POLICY says who goes first: gdsf, lru, lfu, size, age, s3fifo, as for a mount, or an arithmetic expression\n"
        "over size, age, idle (bytes, and seconds since it came and was used), hits and fetch_seconds, with + - * / //\n"
        "% **, abs, log, sqrt, min and max: files of the highest value go first. [gdsf]\n\n"
        "MOUNT is a mountpoint, a [mounts.NAME] or a source; it can be left out where there is only one. The exit code\n"
        "is 1 if what may go is not enough."
    )
    parser.add_argument("of", metavar="MOUNT", nargs="?", help="which cache to prune")
    parser.add_argument(
        "--threshold", metavar="LEVEL", default="90%", help="do nothing below this [90%%]"
    )
    parser.add_argument(
        "--to",
        metavar="LEVEL",
        help="where to stop [75%%; a lower threshold, or one of another kind, itself]",
    )
    parser.add_argument("--policy", metavar="POLICY", help="who goes first [gdsf]")
    parser.add_argument(
        "--older-than", metavar="TIME", help="only what was not used for so long: 30d, 12h"
    )
    parser.add_argument("--larger-than", metavar="SIZE", help="only what takes more than this")
    parser.add_argument(
        "--verified-only",
        action="store_true",
        help="only what cachefs verify has found to be what the store has",
    )
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="remove nothing: tell what would go"
    )
    parser.add_argument(
        "--explain", action="store_true", help="tell the order, the scores, and the reasons"
    )
    add_json(parser)
    show_mount_options(parser, _GROUPS, without=("policy", "min-free"))


def _run(call: Call) -> int:
    threshold = parse_level(call.arguments.threshold, "--threshold")
    to = call.arguments.to
    target = default_target(threshold) if to is None else parse_level(to, "--to")
    if target.is_above(threshold):
        raise UsageError(
            f"--to {to} is more than --threshold {call.arguments.threshold}, at which pruning begins — "
            "name a lower level, or a higher threshold"
        )
    by, call = _by(call)
    cache_dir = one_cache_dir(call)
    tally = _Tally(is_dry=call.arguments.dry_run)
    with opened(cache_dir) as cache, contextlib.ExitStack() as stack:
        which = prune.Which(
            by,
            time.time_ns(),
            unused_for_s=_read_duration(call.arguments.older_than) or 0.0,
            larger_than=_read_size(call.arguments.larger_than) or 0,
            verified=_verified(cache_dir, stack) if call.arguments.verified_only else None,
        )
        levels = _Levels(cache_dir, _given_size(call))
        try:
            if levels.excess(threshold, cache.usage()):
                _prune(call, tally, cache, which, levels.target(target))
        except KeyboardInterrupt:
            tally.is_interrupted = True
        usage = cache.usage()
    _tell(call, tally, levels.fill(usage))
    return tally.code


# ---- what was asked for ---------------------------------------------------------------------


def _by(call: Call) -> tuple[Policy | Expression, Call]:
    """Return the policy, and the call without it: no mount could be configured by an expression."""
    settings = call.given.settings
    if any(each.name == "min-free" for each in settings):
        raise UsageError(
            "--min-free is for mounts — to prune by what the disk has left, write --threshold free:10%"
        )
    said = next((each.value for each in reversed(settings) if each.name == "policy"), "gdsf")
    rest = replace(call.given, settings=tuple(s for s in settings if s.name != "policy"))
    by = Policy(said.lower()) if said.lower() in set(Policy) else parse(said)
    return by, replace(call, given=rest)


def _given_size(call: Call) -> int | None:
    said = next((s.value for s in reversed(call.given.settings) if s.name == "cache-size"), None)
    return None if said is None else _size(said, "--cache-size")


def _read_size(said: str | None) -> int | None:
    return None if said is None else _size(said, "--larger-than")


def _size(said: str, option: str) -> int:
    try:
        return parse_size(said)
    except ValueError as error:
        raise UsageError(f"{option} {said} {error} — for example {option} 100MiB") from None


def _read_duration(said: str | None) -> float | None:
    if said is None:
        return None
    try:
        return parse_duration(said)
    except ValueError as error:
        raise UsageError(f"--older-than {said} {error} — for example --older-than 30d") from None


@dataclass(frozen=True, slots=True)
class _Levels:
    """How full the cache in a directory is."""

    cache_dir: Path
    given_size: int | None

    def excess(self, level: Level, usage: CacheUsage) -> int:
        """Return how many bytes are above *level*."""
        return level.excess(self._usage(usage))

    def target(self, level: Level) -> prune.Target:
        """Return what asks how many bytes are to go."""
        return lambda usage: self.excess(level, usage)

    def fill(self, usage: CacheUsage) -> str:
        """Return in words how full the cache is."""
        known = self._usage(usage)
        if not known.limit:
            return f"the cache takes {human_size(known.used)}"
        share = 100 * known.used / known.limit
        return (
            f"the cache takes {human_size(known.used)}, {share:.1f}% of {human_size(known.limit)}"
        )

    def _usage(self, usage: CacheUsage) -> Usage:
        disk = os.statvfs(self.cache_dir)
        size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        return Usage(usage.used, self.given_size or usage.limit, size, free)


class _Verified:
    """What ``cachefs verify`` keeps of a cache directory."""

    def __init__(self, cache_dir: Path, memory: HashMemory) -> None:
        self._cache_dir = cache_dir
        self._memory = memory

    def __contains__(self, file: CachedFile, /) -> bool:
        path = cached_path(file.id)
        try:
            stamp = Stamp.of((self._cache_dir / path).stat())
        except FileNotFoundError:
            return False
        known = self._memory.known(path, stamp)
        return known is not None and known.etag is not None and known.etag == file.etag


def _verified(cache_dir: Path, stack: contextlib.ExitStack) -> _Verified:
    if not (cache_dir / MEMORY_NAME).exists():
        raise UsageError(
            f"nothing in {cache_dir} was verified yet — run cachefs verify first, or leave out --verified-only"
        )
    return _Verified(cache_dir, stack.enter_context(HashMemory(cache_dir / MEMORY_NAME)))


# ---- doing and telling ----------------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    is_dry: bool
    is_begun: bool = False
    files: int = 0
    bytes: int = 0
    kept: int = 0
    lacking: int = 0
    is_interrupted: bool = False
    has_head: bool = False

    @property
    def code(self) -> int:
        if self.is_interrupted:
            return EXIT_INTERRUPTED
        return EXIT_FAILURES if self.lacking else EXIT_DONE


def _prune(
    call: Call, tally: _Tally, cache: prune.Prunable, which: prune.Which, target: prune.Target
) -> None:
    tally.is_begun = True
    events = prune.prune(
        cache, which, target, cache_size=_given_size(call), is_dry=call.arguments.dry_run
    )
    quiet = call.quiet or call.as_json or call.arguments.explain
    with bar("pruning", quiet=quiet) as shown, contextlib.closing(events):
        for event in events:
            _note(call, tally, event, shown)


def _note(call: Call, tally: _Tally, event: prune.Event, shown: Bar) -> None:
    match event:
        case Progress():
            shown.show(event)
        case prune.Planned(victim) | prune.Removed(victim):
            tally.files += 1
            tally.bytes += victim.file.cost
            _tell_victim(call, tally, victim, "would go" if tally.is_dry else "removed")
        case prune.Kept(victim, why):
            tally.kept += 1
            _tell_victim(call, tally, victim, "kept", why)
        case prune.Ended(lacking):
            tally.lacking = lacking
        case prune.Spared(why, files, size):
            _tell_spared(call, why, files, size)


def _tell_victim(
    call: Call, tally: _Tally, victim: prune.Victim, state: str, why: str | None = None
) -> None:
    file = victim.file
    if call.as_json:
        told: dict[str, object] = {
            "path": file.path,
            "state": state,
            "number": victim.number,
            "score": victim.score,
            "reason": why or victim.reason,
            "bytes": file.cost,
            **{name: value for name, value in asdict(file.facts).items() if name != "size"},
            "etag": file.etag,
        }
        say_json(told, stream=True)
    elif call.arguments.explain:
        if not tally.has_head:
            say(f"{'#':>6}  {'score':>12}  {'size':>10}  {'':9}  why, and which file")
            tally.has_head = True
        row = f"{victim.number:6}  {victim.score:12.6g}  {human_size(file.cost):>10}  {state:9}"
        say(f"{row}  {why or victim.reason}: {_on_one_line(file.path)}")
    elif call.verbose or (tally.is_dry and not call.quiet):
        say(f"{state:9}  {_on_one_line(file.path)}")


def _on_one_line(path: str) -> str:
    return path.replace("\n", "\\n")


def _tell_spared(call: Call, why: str, files: int, size: int) -> None:
    if call.as_json:
        say_json({"state": "spared", "reason": why, "files": files, "bytes": size}, stream=True)
    elif call.arguments.explain:
        say(f"left alone: {counted(files, 'file')} ({human_size(size)}), each of which {why}")


def _tell(call: Call, tally: _Tally, fill: str) -> None:
    """Say in sum what was done."""
    if call.quiet:
        return
    line = "; ".join(_summary(tally, fill))
    if call.as_json:
        print(printable(line), file=sys.stderr)
    else:
        say(line)


def _summary(tally: _Tally, fill: str) -> Iterator[str]:
    if not tally.is_begun and not tally.is_interrupted:
        yield f"nothing to do: {fill}"
        return
    verb = "would go" if tally.is_dry else "removed"
    yield f"{counted(tally.files, 'file')} ({human_size(tally.bytes)}) {verb}"
    if tally.kept:
        yield f"{tally.kept} kept that came into use meanwhile"
    yield fill
    if tally.is_interrupted:
        yield "interrupted"
    elif tally.code == EXIT_FAILURES:
        yield f"{human_size(tally.lacking)} too many are left: the rest is needed, or not what was asked for"


COMMAND = Command(_configure, _run, option_groups=_GROUPS)
