"""``cachefs preheat --metadata``: has all that is below a directory made known, by one listing."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from cachefs.cli.caches import config_of, one_cache_dir
from cachefs.cli.command import Call
from cachefs.cli.failures import EXIT_DONE, EXIT_INTERRUPTED, explain
from cachefs.cli.jobs import bar
from cachefs.cli.output import counted, say, say_json
from cachefs.client import ControlClient, ControlError, NoDaemon
from cachefs.core.errors import CachefsError, UsageError
from cachefs.known import SOCKET_NAME
from cachefs.live import mount_containing
from cachefs.ops.events import Progress

_LONGEST_ANSWER_S: Final = 3600.0
_OTHERS: Final = (
    *("by", "from_dir", "list", "null", "include", "exclude"),
    *("bytes", "files", "until", "evict", "check"),
)
"""Options that say which files to fetch, and how much of them."""


def run(call: Call) -> int:
    """Do it, and tell what was done."""
    for name in _OTHERS:
        if getattr(call.arguments, name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"--metadata fetches no file — leave out {option}, or --metadata")
    told: Mapping[str, object] = {}
    code = EXIT_DONE
    with _where(call) as (socket, path), ControlClient(socket) as client:
        try:
            with bar("listing", quiet=call.quiet or call.as_json) as shown:
                while not told.get("over"):
                    told = _told(client.ask("survey", path=path, timeout_s=_LONGEST_ANSWER_S))
                    shown.show(Progress(_number(told, "objects")))
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
    _say(call, told, code)
    return code


def _say(call: Call, told: Mapping[str, object], code: int) -> None:
    objects, directories, requests = (
        _number(told, name) for name in ("objects", "directories", "requests")
    )
    if call.as_json:
        say_json({"objects": objects, "directories": directories, "requests": requests})
        return
    where = "1 directory" if directories == 1 else f"{directories} directories"
    line = f"{counted(objects, 'object')} in {where} known, by {counted(requests, 'request')}"
    if code == EXIT_INTERRUPTED:
        print(f"{line}; interrupted", file=sys.stderr)
    elif not call.quiet:
        say(line)


def _told(answer: object) -> Mapping[str, object]:
    if not isinstance(answer, dict) or not isinstance(answer.get("over"), bool):
        raise ControlError("the daemon's answer is not one")
    return answer


def _number(told: Mapping[str, object], name: str) -> int:
    found = told.get(name, 0)
    return found if isinstance(found, int) else 0


@contextlib.contextmanager
def _where(call: Call) -> Iterator[tuple[Path, str]]:
    """Yield the socket of the daemon that is meant, and the path of the directory in its mount."""
    of, inside = call.arguments.of, None
    if of is not None:
        with contextlib.suppress(UsageError):  # a name or a source, then
            inside = mount_containing(of, call.environment)
    if inside is not None:
        running, relative = inside
        yield Path(running.socket), relative
        return
    with daemon_of(call, one_cache_dir(call)) as socket:
        yield socket, ""


@contextlib.contextmanager
def daemon_of(call: Call, cache_dir: Path) -> Iterator[Path]:
    """Yield the socket of the daemon of *cache_dir*, or of one that lives as long as the block."""
    socket = cache_dir / SOCKET_NAME
    with contextlib.ExitStack() as stack:
        try:
            ControlClient(socket).close()
        except NoDaemon:
            from cachefs.within import answering  # the SDKs, only where they are needed

            config = config_of(call, cache_dir, how="cachefs preheat s3://BUCKET")
            try:
                stack.enter_context(answering(config, call.environment))
            except CachefsError as error:
                doing = f"cannot preheat {config.source}"
                failure = explain(error, doing=doing, source=config.source)
                raise UsageError(failure.line, exit_code=failure.code) from error
        yield socket
