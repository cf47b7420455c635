"""``cachefs recover``: what a crash, or a store that was down, left waiting in a cache directory."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cachefs.cli.caches import File, Live, cache_dirs, config_of, opened
from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import (
    EXIT_DONE,
    EXIT_FAILURES,
    EXIT_UNREACHABLE,
    EXIT_WAITING,
    Failure,
    explain,
)
from cachefs.cli.output import complain, counted, human_size, printable, say, say_json, table
from cachefs.cli.parser import Parser, show_mount_options
from cachefs.client import ControlClient, NoDaemon
from cachefs.config.option import Group
from cachefs.core.errors import CachefsError, InUse, UsageError
from cachefs.known import SOCKET_NAME

_GROUPS: Final = (Group.CACHE, Group.WRITING, Group.REMOTE)
_ACTIONS: Final = ("list", "upload", "export", "discard")


def _configure(parser: Parser) -> None:
    parser.usage = "cachefs recover [list|upload|export|discard] [FILE ...] [--of MOUNT | --cache-dir DIR] [options]"
    parser.description = (
        "Deals with files that wait for upload in a cache directory: after a crash, or while the store was down.\n"
        "The next mount uploads them by itself; this is for looking, and for when there is no next mount.\n\n"
        "  list      tell what waits (the default)\n"
        "  upload    upload the files, or all, now; --of says where to\n"
        "  export    copy the files, or all, into the directory --to\n"
        "  discard   give up the changes of the files, for good\n\n"
        "A FILE is named by its path or its id in the list. Without --of and --cache-dir, every cache directory\n"
        "that is known is looked into. A running mount is asked; otherwise the directory itself is."
    )
    parser.add_argument(
        "action",
        metavar="ACTION",
        nargs="?",
        choices=_ACTIONS,
        default="list",
        help=argparse.SUPPRESS,
    )
    parser.add_argument("files", metavar="FILE", nargs="*", help="a path or an id from the list")
    parser.add_argument("--of", metavar="MOUNT", help="a mountpoint, a [mounts.NAME], or a source")
    parser.add_argument(
        "--to", metavar="DIR", help="export: the directory to copy to; created if missing"
    )
    parser.add_argument(
        "--all", action="store_true", help="export, discard: every file that waits"
    )
    parser.add_argument("--yes", action="store_true", help="discard: do not ask")
    add_json(parser)
    show_mount_options(parser, _GROUPS)


def _run(call: Call) -> int:
    actions = {"list": _list, "upload": _upload, "export": _export, "discard": _discard}
    return actions[call.arguments.action](call)


def _list(call: Call) -> int:
    found = {}
    for cache_dir in cache_dirs(call):
        try:
            with opened(cache_dir) as waiting:
                found[cache_dir] = list(waiting.dirty())
        except InUse as error:  # a daemon that begins or ends; the others are told nevertheless
            complain(str(error))
    if call.as_json:
        say_json(
            {
                "caches": [
                    {"cache_dir": str(where), "files": files} for where, files in found.items()
                ]
            }
        )
        return EXIT_DONE
    if not any(found.values()) and not call.quiet:
        say("nothing waits for upload")
    for cache_dir, files in found.items():
        if files:
            say(f"{cache_dir}: {counted(len(files), 'file')}")
            listed = table([_HEAD, *map(_row, files)])
            say("\n".join(f"  {call.redactor(line)}" for line in listed))
    return EXIT_DONE


_HEAD: Final = ("id", "state", "size", "path", "why")


def _row(file: File) -> tuple[str, ...]:
    size = file.get("size")
    return (
        str(file.get("id")),
        str(file.get("state")),
        human_size(size) if isinstance(size, int) else "?",
        str(file.get("path")),
        str(file.get("error") or ""),
    )


def _upload(call: Call) -> int:
    cache_dir = _one_cache_dir(call)
    try:
        with ControlClient(cache_dir / SOCKET_NAME) as client:
            live = Live(client)
            outcomes = [
                (file, _attempt(live, file)) for file in _chosen_or_all(call, live.dirty())
            ]
    except NoDaemon:
        from cachefs.cli.offline import (
            upload,
        )  # the SDKs and the event loop, only where they are needed

        outcomes = upload(
            config_of(call, cache_dir, how="--of s3://BUCKET"),
            call.environment,
            lambda files: _chosen_or_all(call, files),
        )
    return _tell_uploads(call, outcomes)


def _attempt(live: Live, file: File) -> Failure | None:
    """Upload *file*; return why it did not work, if so. That the daemon is gone is for the caller."""
    try:
        live.upload(_id(file))
    except NoDaemon:
        raise
    except CachefsError as error:
        # The daemon uploads by itself, too: what waits no longer was only faster than this.
        if any(each.get("id") == file.get("id") for each in live.dirty()):
            return explain(error)
    return None


def _tell_uploads(call: Call, outcomes: Sequence[tuple[File, Failure | None]]) -> int:
    failed = [(file, failure) for file, failure in outcomes if failure]
    uploaded = [str(file.get("path")) for file, failure in outcomes if not failure]
    if call.as_json:
        reasons = [{"path": file.get("path"), "error": failure.line} for file, failure in failed]
        say_json({"uploaded": uploaded, "failed": reasons})
    elif not call.quiet:
        for path in uploaded:
            say(path)
    for file, failure in failed:
        complain(
            printable(f"{file.get('path')} could not be uploaded: {call.redactor(failure.line)}")
        )
    if any(failure.code == EXIT_UNREACHABLE for _, failure in failed):
        return EXIT_WAITING
    return EXIT_FAILURES if failed else EXIT_DONE


def _export(call: Call) -> int:
    if not call.arguments.to:
        raise UsageError("export needs a directory to copy to — for example --to ./rescued")
    target = call.environment.absolute(call.arguments.to)
    cache_dir = _one_cache_dir(call)
    done, failures = [], 0
    with opened(cache_dir) as waiting:
        for file in _chosen(call, waiting.dirty()):
            to = target / _safe_relative(str(file.get("path")))
            try:
                to.parent.mkdir(parents=True, exist_ok=True)
                waiting.export(_id(file), to)
            except (CachefsError, OSError) as error:
                failures += 1
                complain(f"cannot export {file.get('path')}: {error}")
            else:
                done.append(str(to))
    if call.as_json:
        say_json({"exported": done})
    elif not call.quiet:
        for name in done:
            say(name)
    return EXIT_FAILURES if failures else EXIT_DONE


def _discard(call: Call) -> int:
    cache_dir = _one_cache_dir(call)
    with opened(cache_dir) as waiting:
        chosen = _chosen(call, waiting.dirty())
        if not call.arguments.yes and not _agreed(chosen):
            raise UsageError(
                "nothing was discarded — pass --yes to give up these changes for good"
            )
        for file in chosen:
            waiting.discard(_id(file))
    if call.as_json:
        say_json({"discarded": [file.get("path") for file in chosen]})
    elif not call.quiet:
        say(f"{counted(len(chosen), 'file')} discarded")
    return EXIT_DONE


def _chosen_or_all(call: Call, files: Sequence[File]) -> list[File]:
    return _chosen(call, files) if call.arguments.files else list(files)


def _chosen(call: Call, files: Sequence[File]) -> list[File]:
    wanted = list(call.arguments.files)
    if call.arguments.all:
        return list(files)
    if not wanted:
        raise UsageError(
            f"{call.arguments.action} needs the files to take — name them by path or id, or pass --all"
        )
    chosen = []
    for word in wanted:
        matching = [
            file
            for file in files
            if word == str(file.get("id")) or word.lstrip("/") == str(file.get("path")).lstrip("/")
        ]
        if not matching:
            raise UsageError(
                f"{word} does not wait for upload — cachefs recover list shows what does"
            )
        chosen += matching
    return chosen


def _agreed(files: Sequence[File]) -> bool:
    if not sys.stdin.isatty() or not files:
        return not files
    for file in files:
        print(printable(f"  {file.get('path')}"), file=sys.stderr)
    print(
        f"Give up the changes of {counted(len(files), 'file')} for good? [y/N] ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _id(file: File) -> int:
    return int(str(file["id"]))


def _safe_relative(path: str) -> Path:
    """Return *path* without anything that leads out of the directory it is put below."""
    parts = [part for part in path.split("/") if part not in {"", ".", ".."}]
    return Path(*parts) if parts else Path("file")


def _one_cache_dir(call: Call) -> Path:
    found = cache_dirs(call)
    if len(found) == 1:
        return found[0]
    holding = []
    for cache_dir in found:
        with opened(cache_dir) as waiting:
            if waiting.dirty():
                holding.append(cache_dir)
    if len(holding) == 1:
        return holding[0]
    if not holding:
        raise UsageError(
            "nothing waits for upload in any cache directory that is known — name one by --cache-dir"
        )
    raise UsageError(
        f"files wait in {' and '.join(map(str, holding))} — choose one by --cache-dir"
    )


COMMAND = Command(_configure, _run, option_groups=_GROUPS)
