"""``cachefs flush``: what waits for upload goes now."""

from pathlib import Path

from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES, EXIT_WAITING
from cachefs.cli.output import complain, counted, printable, say, say_json
from cachefs.cli.parser import Parser
from cachefs.cli.progress import uploads_shown
from cachefs.client import ControlClient
from cachefs.live import every_mount, mount_containing
from cachefs.registry import Registration

_LONGEST_WAIT_S = 7 * 86400.0


def _configure(parser: Parser) -> None:
    parser.description = (
        "Uploads changed files now: those named, those below the directories named, or all of every mount.\n"
        "Without --wait it returns at once. With it, the exit code is 1 if the store refused a file, and 5 if\n"
        "something still waits."
    )
    parser.add_argument("paths", metavar="PATH", nargs="*", help="a file or directory in a mount")
    parser.add_argument(
        "--wait", action="store_true", help="return when all is uploaded, or failed"
    )
    add_json(parser)


def _run(call: Call) -> int:
    results = [
        {"mountpoint": running.mountpoint, **_flushed(call, running, paths)}
        for running, paths in _by_mount(call)
    ]
    if call.as_json:
        say_json({"mounts": results})
    code = EXIT_DONE
    for result in results:
        code = max(code, _tell(call, result), key=(EXIT_DONE, EXIT_WAITING, EXIT_FAILURES).index)
    return code


def _by_mount(call: Call) -> list[tuple[Registration, list[str]]]:
    if not call.arguments.paths:
        return [(running, []) for running in every_mount(call.environment)]
    grouped: dict[str, tuple[Registration, list[str]]] = {}
    for path in call.arguments.paths:
        running, relative = mount_containing(path, call.environment)
        grouped.setdefault(running.mountpoint, (running, []))[1].append(relative)
    # The root of a mount means all of it, whatever else was named.
    return [(running, [] if "" in paths else paths) for running, paths in grouped.values()]


def _flushed(call: Call, running: Registration, paths: list[str]) -> dict[str, object]:
    socket, wait = Path(running.socket), call.arguments.wait
    with ControlClient(socket) as client, uploads_shown(socket, quiet=call.quiet or not wait):
        bound = _LONGEST_WAIT_S if wait else None
        answer = client.ask("flush", paths=paths, wait=wait, timeout_s=bound)
    return answer if isinstance(answer, dict) else {}


def _tell(call: Call, result: dict[str, object]) -> int:
    uploaded, waiting, failed = (
        _files(result, name) for name in ("uploaded", "waiting", "failed")
    )
    done = len(uploaded) or result.get("uploaded") or 0
    if not call.as_json and not call.quiet:
        say(
            f"{result['mountpoint']}: {counted(int(str(done)), 'file')} uploaded, {len(waiting)} waiting"
        )
    for file in failed:
        complain(
            printable(
                f"{result['mountpoint']}/{_path(file)} could not be uploaded: {_error(file)}"
            )
        )
    if failed:
        return EXIT_FAILURES
    return EXIT_WAITING if waiting and call.arguments.wait else EXIT_DONE


def _files(result: dict[str, object], name: str) -> list[object]:
    found = result.get(name)
    return found if isinstance(found, list) else []


def _path(file: object) -> object:
    return file.get("path") if isinstance(file, dict) else file


def _error(file: object) -> object:
    return file.get("error") if isinstance(file, dict) else "see cachefs status"


COMMAND = Command(_configure, _run)
