"""``cachefs simulate``: which policy, and how large a cache, a recorded workload calls for."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cachefs.cli.caches import one_cache_dir, opened
from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_DONE, EXIT_INTERRUPTED
from cachefs.cli.jobs import bar
from cachefs.cli.output import complain, counted, human_size, say, say_json, table
from cachefs.cli.parser import Parser
from cachefs.client import ControlClient, ControlError
from cachefs.config.quantities import parse_size
from cachefs.config.settings import suggestion
from cachefs.core.errors import UsageError
from cachefs.known import has_cache
from cachefs.live import every_mount
from cachefs.ops import libcachesim, traces
from cachefs.ops.simulate import (
    BOUND,
    FOREIGN,
    OWN,
    THEIRS,
    Outcome,
    is_known,
    simulate,
    wants_library,
)
from cachefs.ops.traces import Format, Trace

_SIZES: Final = "1%,2%,5%,10%,20%,50%"
_LEAST: Final = 2**20
_PLOTS: Final = (".png", ".svg")


def _configure(parser: Parser) -> None:
    parser.usage = "cachefs simulate TRACE [TRACE ...] [options]"
    parser.description = (
        "Tells what hit ratio, byte hit ratio and waiting time each policy of eviction would have had, in caches\n"
        "of several sizes, on the opens that a trace recorded.\n\n"
        "TRACE is a file that a mount's --trace wrote (several are taken together; .gz is read), a CSV file with\n"
        "--columns, or a trace in the form oracleGeneral. It may also be a mount: then the trace that it writes is\n"
        "taken, or else the number of opens that it remembers of each file and day, at random times of the day. A\n"
        "cache directory is as good as its mount.\n\n"
        f"Policies of the mount: {', '.join(OWN)}. They are run as a mount runs them.\n"
        f"Of the library libcachesim (pip install 'cachefs-mount[simulate]'): {', '.join(THEIRS)};\n"
        f"{FOREIGN}lru and so on for its own of a name that the mount has, too. belady and belady-size know the\n"
        f"future. {BOUND} is a cache in which everything fits."
    )
    parser.add_argument("traces", metavar="TRACE", nargs="+", help="what was recorded")
    parser.add_argument(
        "--policy",
        metavar="NAMES",
        help=f"policies, separated by commas [{','.join(OWN)}, belady, belady-size and {BOUND}]",
    )
    parser.add_argument(
        "--sizes",
        metavar="SIZES",
        default=_SIZES,
        help=f"sizes of the cache: 10GiB, or a percentage of the bytes of all files [{_SIZES}]".replace(
            "%", "%%"
        ),
    )
    parser.add_argument(
        "--format",
        choices=[each.value for each in Format],
        help="how the trace is written; found out unless it is said",
    )
    parser.add_argument(
        "--columns",
        metavar="NAME=COLUMN,…",
        help=f"of CSV: where {', '.join(traces.OWN)} are, by number, from 1, or by name in the header; key and size "
        "are needed",
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the curves into FILE: .png or .svg (needs matplotlib)"
    )
    add_json(parser)


def _run(call: Call) -> int:
    arguments = call.arguments
    policies = _policies(call)
    draw = _drawing(arguments.plot)
    trace, note = _trace(call)
    limits = _limits(arguments.sizes, trace.footprint())
    if arguments.policy is None and "belady" not in policies and not call.quiet:
        complain("Belady's bound needs libcachesim: pip install 'cachefs-mount[simulate]'")
    outcomes: list[Outcome] = []
    code = EXIT_DONE
    try:
        with bar("simulating", quiet=call.quiet or call.as_json) as shown:
            for event in simulate(trace, policies, limits):
                if isinstance(event, Outcome):
                    outcomes.append(event)
                else:
                    shown.show(event)
    except KeyboardInterrupt:
        complain("interrupted: what was simulated by then is told")
        code = EXIT_INTERRUPTED
    _tell(call, trace, note, outcomes)
    if draw is not None and outcomes:
        draw(outcomes, call.environment.absolute(arguments.plot))
    return code


# ---- what was asked for ---------------------------------------------------------------------


def _policies(call: Call) -> list[str]:
    given = call.arguments.policy
    has_library = libcachesim.is_installed()
    if given is None:
        bounds = ("belady", "belady-size") if has_library else ()
        return [*OWN, *bounds, BOUND]
    names = [name for name in given.split(",") if name]
    for name in names:
        if not is_known(name):
            known = (*OWN, *THEIRS, BOUND)
            raise UsageError(
                f"there is no policy {name}{suggestion(name, known) or ' — see cachefs simulate --help'}"
            )
        if wants_library(name) and not has_library:
            raise UsageError(
                f"the policy {name} is of libcachesim — install it by pip install 'cachefs-mount[simulate]'"
            )
    if not names:
        raise UsageError("--policy names none — for example --policy gdsf,lru")
    return list(dict.fromkeys(names))


def _limits(given: str, footprint: int) -> list[int]:
    """Return the sizes of the caches, the smallest first."""
    limits = set()
    for word in filter(None, given.split(",")):
        try:
            limits.add(_limit(word.strip(), footprint))
        except ValueError as error:
            raise UsageError(
                f"--sizes {word} {error} — for example --sizes 1GiB,10GiB or --sizes 1%,10%"
            ) from None
    if not limits:
        raise UsageError("--sizes names none — for example --sizes 1GiB,10GiB")
    return sorted(limits)


def _limit(word: str, footprint: int) -> int:
    if word.endswith("%"):
        share = float(word[:-1])
        if not 0 < share <= 100:
            raise ValueError("is no percentage")
        return max(_LEAST, int(footprint * share / 100))
    size = parse_size(word)
    if size < _LEAST:
        raise ValueError("is less than the smallest cache, 1MiB")
    return size


def _columns(given: str | None) -> dict[str, str] | None:
    if given is None:
        return None
    columns = {}
    for part in given.split(","):
        name, equals, where = part.partition("=")
        if not equals or not where:
            raise UsageError(
                f"--columns {part} is not NAME=COLUMN — for example --columns time=1,key=2,size=3"
            )
        columns[name.strip()] = where.strip()
    return columns


def _drawing(plot: str | None) -> Callable[[Sequence[Outcome], Path], None] | None:
    if plot is None:
        return None
    if not plot.endswith(_PLOTS):
        raise UsageError(f"--plot {plot} is neither .png nor .svg — for example --plot curves.svg")
    from cachefs.cli.plot import draw, require_library  # matplotlib, only where it is needed

    require_library()
    return draw


# ---- the trace ------------------------------------------------------------------------------


def _trace(call: Call) -> tuple[Trace, str]:
    """Return the trace, and what has to be said of it."""
    arguments = call.arguments
    form = Format(arguments.format) if arguments.format else None
    columns = _columns(arguments.columns)
    paths = [call.environment.absolute(name) for name in arguments.traces]
    if any(path.is_file() for path in paths) or len(paths) > 1 or form or columns:
        return traces.read(paths, form=form, columns=columns), ""
    return _of_mount(call)


def _of_mount(call: Call) -> tuple[Trace, str]:
    named = call.environment.absolute(call.arguments.traces[0])
    cache_dir = named if has_cache(named) else _cache_dir_of(call)
    written = _written_by(call, cache_dir)
    if written is not None:
        return traces.read([written], form=Format.CACHEFS, columns=None), f"as {written} has it"
    with opened(cache_dir) as held:
        trace = traces.from_history(held.history())
    return trace, "from what the cache remembers, at random times of each day"


def _cache_dir_of(call: Call) -> Path:
    call.arguments.of = call.arguments.traces[0]
    try:
        cache_dir = one_cache_dir(call)
    except UsageError:
        cache_dir = None
    if cache_dir is None or not has_cache(cache_dir):
        raise UsageError(
            f"{call.arguments.of} is neither a trace, nor a mount that remembers opens, nor a cache directory"
            " — name a file that --trace wrote"
        )
    return cache_dir


def _written_by(call: Call, cache_dir: Path) -> Path | None:
    """Return the trace that the mount on *cache_dir* writes, if one does."""
    for running in every_mount(call.environment):
        if running.cache_dir == str(cache_dir):
            try:
                with ControlClient(Path(running.socket)) as client:
                    status = client.ask("status")
            except ControlError:
                return None
            said = status.get("trace") if isinstance(status, dict) else None
            path = Path(str(said["file"])) if isinstance(said, dict) else None
            return path if path is not None and path.is_file() else None
    return None


# ---- what came of it ------------------------------------------------------------------------


def _tell(call: Call, trace: Trace, note: str, outcomes: Sequence[Outcome]) -> None:
    if call.as_json:
        say_json({"trace": _described(trace, note), "results": [_row(each) for each in outcomes]})
        return
    said = _described(trace, note)
    recorded = "recorded" if said["fetch_times"] == "recorded" else "supposed"
    say(
        f"{counted(len(trace), 'open')} of {counted(trace.files, 'file')}, "
        f"{human_size(int(str(said['footprint'])))} in all, {said['from']} to {said['to']}"
        + (f", {note}" if note else "")
    )
    limits = sorted({each.limit for each in outcomes})
    by_policy: dict[str, dict[int, Outcome]] = {}
    for each in outcomes:
        by_policy.setdefault(each.policy, {})[each.limit] = each
    measures: tuple[tuple[str, Callable[[Outcome], str]], ...] = (
        ("hit ratio", lambda each: f"{100 * each.hit_ratio:.2f}%"),
        ("byte hit ratio", lambda each: f"{100 * each.byte_hit_ratio:.2f}%"),
        (f"waiting time ({recorded})", lambda each: human_time(each.waited_s)),
    )
    for title, cell in measures:
        head = (title, *map(human_size, limits))
        rows = [
            (policy, *(cell(found[limit]) if limit in found else "" for limit in limits))
            for policy, found in by_policy.items()
        ]
        say("\n" + "\n".join(table([head, *rows])))


def _described(trace: Trace, note: str) -> Mapping[str, object]:
    has_times = not all(map(math.isnan, trace.seconds))
    return {
        "opens": len(trace),
        "files": trace.files,
        "footprint": trace.footprint(),
        "from": _moment(trace.times_ns[0]),
        "to": _moment(trace.times_ns[-1]),
        "fetch_times": "recorded" if has_times else "supposed",
        "note": note,
    }


def _moment(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _row(outcome: Outcome) -> Mapping[str, object]:
    return {
        "policy": outcome.policy,
        "size": outcome.limit,
        "opens": outcome.opens,
        "hits": outcome.hits,
        "hit_ratio": round(outcome.hit_ratio, 6),
        "byte_hit_ratio": round(outcome.byte_hit_ratio, 6),
        "waiting_s": round(outcome.waited_s, 3),
    }


def human_time(seconds: float) -> str:
    """Return a duration in the largest unit that leaves at least 2."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


COMMAND = Command(_configure, _run)
