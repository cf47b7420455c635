"""``cachefs status``: what is mounted, served, cached, waiting and wrong."""

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES
from cachefs.cli.output import counted, human_size, printable, say, say_json, table
from cachefs.cli.parser import Parser
from cachefs.client import ControlClient, ControlError
from cachefs.config.quantities import parse_patience
from cachefs.core.errors import UsageError
from cachefs.live import every_mount, every_pool, mount_containing
from cachefs.mounts import locate, mount_at, mounted
from cachefs.registry import Registration

_HOME, _END_OF_LINE, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_MOST_FILES = 20
_LATER = "the next mount makes a new one from what lies beside it"


def _configure(parser: Parser) -> None:
    parser.description = (
        "Tells of every running mount and pool of yours, or of one: how full the cache is, how much was read from\n"
        "it, open handles, files that wait for upload, requests, the health and the abilities of the store.\n"
        "The exit code is 1 if something is wrong: an upload was given up, the database of the cache\n"
        "is damaged, or a mount or pool does not answer."
    )
    parser.add_argument(
        "mountpoint",
        metavar="MOUNTPOINT",
        nargs="?",
        help="a mount, or a path in it; or the directory of a pool",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="tell again and again, until interrupted: in place on a terminal, in a pipe one block (--json: one line) "
        "each time",
    )
    parser.add_argument("--interval", metavar="TIME", help="with --watch: how often [1s]")
    add_json(parser)


def _run(call: Call) -> int:
    if call.arguments.watch:
        _watch(call, _interval_s(call.arguments.interval or "1s"))
    if call.arguments.interval is not None:
        raise UsageError("--interval says how often --watch tells — pass that, too")
    reports = list(_reports(call))
    if call.as_json:
        say_json(_document(call, reports))
    else:
        say(_text(reports))
    return EXIT_FAILURES if any(map(_is_wrong, reports)) else EXIT_DONE


def _interval_s(said: str) -> float:
    try:
        return parse_patience(said)
    except ValueError as error:
        raise UsageError(f"--interval {said} {error} — for example --interval 2s") from None


def _watch(call: Call, interval_s: float) -> NoReturn:
    """Tell again and again."""
    pause = threading.Event()
    while True:
        began = time.monotonic()
        reports = list(_reports(call))
        if call.as_json:
            say_json({"time": time.time(), **_document(call, reports)}, stream=True)
        else:
            text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{_text(reports)}"
            if sys.stdout.isatty():
                _show_in_place(text)
            else:
                say(f"{text}\n")
        pause.wait(max(0.0, interval_s - (time.monotonic() - began)))


def _show_in_place(text: str) -> None:
    """Write *text* over what the terminal shows, line by line: it does not flicker, and scrolls nothing away."""
    size = shutil.get_terminal_size()
    lines = [line[: size.columns] for line in printable(text).splitlines()[: size.lines - 1]]
    shown = "".join(f"{line}{_END_OF_LINE}\n" for line in lines)
    sys.stdout.write(f"{_HOME}{shown}{_BELOW}")
    sys.stdout.flush()


def _document(call: Call, reports: list[dict[str, object]]) -> dict[str, object]:
    if call.arguments.mountpoint:
        return reports[0]
    return {
        "mounts": [report for report in reports if "mountpoint" in report],
        "pools": [report for report in reports if "home" in report],
    }


def _text(reports: list[dict[str, object]]) -> str:
    return "\n\n".join("\n".join(describe(report)) for report in reports) or "no cachefs mounts"


def _reports(call: Call) -> Iterator[dict[str, object]]:
    """Yield what each mount, and then each pool, says of itself."""
    given = call.arguments.mountpoint
    pools = {each.mountpoint: each for each in every_pool(call.environment)}
    if given:
        absolute = call.environment.absolute(given)
        if str(absolute) in pools:
            yield _asked_pool(pools[str(absolute)])
            return
        place = locate(absolute)
        mount = mount_at(place)
        if mount is not None and mount.is_cachefs and not _is_running(call, place):
            yield _dead(str(place), mount.source)
            return
        yield _asked(mount_containing(given, call.environment)[0])
        return
    running = every_mount(call.environment)
    yield from map(_asked, running)
    known = {each.mountpoint for each in running}
    for mount in mounted():
        if mount.is_cachefs and str(mount.mountpoint) not in known and call.environment.is_root:
            yield _dead(str(mount.mountpoint), mount.source)
    yield from map(_asked_pool, pools.values())


def _is_running(call: Call, mountpoint: Path) -> bool:
    return any(each.mountpoint == str(mountpoint) for each in every_mount(call.environment))


def _asked(running: Registration) -> dict[str, object]:
    return _answer({"mountpoint": running.mountpoint}, running)


def _asked_pool(running: Registration) -> dict[str, object]:
    return _answer({"home": running.mountpoint}, running)


def _answer(place: Mapping[str, object], running: Registration) -> dict[str, object]:
    base: dict[str, object] = {
        **place,
        "source": running.source,
        "cache_dir": running.cache_dir,
        "pid": running.pid,
    }
    try:
        with ControlClient(Path(running.socket)) as client:
            answer = client.ask("status")
    except ControlError as error:
        return {**base, "error": str(error)}
    return {**base, **(answer if isinstance(answer, dict) else {})}


def _dead(mountpoint: str, source: str) -> dict[str, object]:
    reason = "no daemon of yours serves it — if it is stale, the next mount cleans it up"
    return {"mountpoint": mountpoint, "source": source, "error": reason}


def _is_wrong(report: Mapping[str, object]) -> bool:
    return (
        "error" in report
        or _mapping(report, "database").get("state") == "damaged"
        or any(file.get("state") == "parked" for file in _list(report, "dirty"))
    )


def describe(report: Mapping[str, object]) -> list[str]:
    """Return *report* in lines for a person."""
    if "home" in report:
        lines = [f"pool of {report.get('source')} at {report.get('home')}"]
    else:
        lines = [f"{report.get('source')} at {report.get('mountpoint')}"]
    if "error" in report:
        return [*lines, f"  does not answer: {report['error']}"]
    rows = [
        ("cache", _cache(report)),
        ("reads", _reads(_mapping(report, "reads"))),
        ("open", counted(_number(report, "open_handles"), "handle")),
        *([("pool", _pool(_mapping(report, "pool")))] if report.get("pool") else []),
        ("leased", _leased(_mapping(report, "leased"))),
        ("waiting", _waiting(_list(report, "dirty"))),
        ("requests", _counts(_mapping(report, "requests"))),
        ("store", f"{report.get('store')} {_health(_mapping(report, 'remote'))}"),
        ("abilities", _abilities(_mapping(report, "capabilities"))),
        ("daemon", f"pid {report.get('pid')}, cachefs {report.get('version')}"),
    ]
    rows += [
        (name, _lines(_mapping(report, name))) for name in ("trace", "audit") if report.get(name)
    ]
    if lost := _number(_mapping(report, "trace"), "lost"):
        rows.append(("trace", f"{counted(lost, 'open')} could not be written; the log tells why"))
    database = _mapping(report, "database")
    if database.get("state") == "damaged":
        rows.append(("database", f"damaged ({database.get('reason')}): {_LATER}"))
    if failed := _number(report, "failed_tasks"):
        rows.append(
            ("failures", f"{counted(failed, 'task')} failed unforeseen; the log tells more")
        )
    lines += [f"  {line}" for line in table(rows)]
    lines += [
        f"  note: {note}" for note in _list_of_text(_mapping(report, "capabilities"), "notes")
    ]
    lines += _files(_list(report, "dirty"))
    lines += [f"  {line}" for line in table(map(_conflict, _list(report, "conflicts")))]
    return lines


def _cache(report: Mapping[str, object]) -> str:
    cache = _mapping(report, "cache")
    used, limit = _number(cache, "used"), _number(cache, "limit")
    share = f" ({100 * used // limit}%)" if limit else ""
    files = _number(cache, "pinned_files")
    pinned = f"{files} pinned ({human_size(_number(cache, 'pinned_bytes'))}), " if files else ""
    return (
        f"{human_size(used)} of {human_size(limit)}{share}, {counted(_number(cache, 'entries'), 'object')}, {pinned}"
        f"in {report.get('cache_dir')}"
    )


def _reads(reads: Mapping[str, object]) -> str:
    opens, read, fetched = (
        _number(reads, name) for name in ("opens", "bytes_read", "bytes_fetched")
    )
    if not opens:
        return "none yet"
    ratio = 100 * _number(reads, "opens_cached") // opens
    return f"{counted(opens, 'open')}, {ratio}% of them cached; {human_size(read)} read, {human_size(fetched)} fetched"


def _pool(pool: Mapping[str, object]) -> str:
    requests = _mapping(pool, "requests")
    pulled = f"{requests.get('pull')} pulled, {requests.get('push')} pushed"
    clients = counted(_number(pool, "clients"), "client")
    return f"answers at {pool.get('address')}, {clients}, {pulled}, in {pool.get('home')}"


def _leased(leased: Mapping[str, object]) -> str:
    if not _number(leased, "leases"):
        return "nothing"
    size = human_size(_number(leased, "bytes"))
    return f"{counted(_number(leased, 'files'), 'file')} ({size}), {counted(_number(leased, 'leases'), 'lease')}"


def _lines(file: Mapping[str, object]) -> str:
    lost = _number(file, "lost")
    missing = f", {counted(lost, 'line')} could not be written" if lost else ""
    return f"{counted(_number(file, 'lines'), 'line')} in {file.get('file')}{missing}"


def _waiting(dirty: list[Mapping[str, object]]) -> str:
    if not dirty:
        return "nothing"
    states: dict[str, int] = {}
    for file in dirty:
        state = str(file.get("state"))
        states[state] = states.get(state, 0) + 1
    return ", ".join(f"{number} {state}" for state, number in states.items())


def _files(dirty: list[Mapping[str, object]]) -> list[str]:
    rows = [
        (f"  {file.get('state')}", str(file.get("path")), str(file.get("error") or ""))
        for file in dirty[:_MOST_FILES]
    ]
    more = [f"  … and {len(dirty) - _MOST_FILES} more"] if len(dirty) > _MOST_FILES else []
    return table(rows) + more


def _conflict(conflict: Mapping[str, object]) -> tuple[str, ...]:
    moment = time.strftime(
        "%Y-%m-%d %H:%M:%S", time.localtime(_number(conflict, "when_ns") // 10**9)
    )
    return (f"conflict {moment}", str(conflict.get("key")), str(conflict.get("outcome")))


def _counts(requests: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {number}" for name, number in requests.items()) or "none yet"


def _health(remote: Mapping[str, object]) -> str:
    since = remote.get("offline_since")
    if isinstance(since, int | float):
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
        state = "is offline" if remote.get("is_offline") else "does not answer"
        return f"{state} since {moment}: {remote.get('last_error')}"
    return "answers" + (
        f" (last fault: {remote['last_error']})" if remote.get("last_error") else ""
    )


def _abilities(capabilities: Mapping[str, object]) -> str:
    told = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in capabilities.items()
        if name not in {"is_many", "notes", "writable"}
    ]
    writable = {True: "writable", False: "not writable", None: "writable unknown"}
    return ", ".join(
        [writable[bool(w) if (w := capabilities.get("writable")) is not None else None], *told]
    )


def _mapping(of: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = of.get(name)
    return found if isinstance(found, dict) else {}


def _plain_list(of: Mapping[str, object], name: str) -> list[object]:
    found = of.get(name)
    return found if isinstance(found, list) else []


def _list(of: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    return [each for each in _plain_list(of, name) if isinstance(each, dict)]


def _list_of_text(of: Mapping[str, object], name: str) -> list[str]:
    return [str(each) for each in _plain_list(of, name)]


def _number(of: Mapping[str, object], name: str) -> int:
    found = of.get(name)
    return int(found) if isinstance(found, int | float) else 0


COMMAND = Command(_configure, _run)
