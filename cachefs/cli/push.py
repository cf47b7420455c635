"""``cachefs push``: a directory tree to a bucket or container, all that is new or changed, or what a list names."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES, EXIT_INTERRUPTED, explain
from cachefs.cli.jobs import bar, byte_rate
from cachefs.cli.output import complain
from cachefs.cli.parser import Parser, show_mount_options
from cachefs.cli.push_report import Report, total_shown
from cachefs.cli.stores import opened_store, store_config
from cachefs.config import MountConfig
from cachefs.config.mount import cache_id
from cachefs.config.option import Group
from cachefs.core.errors import StoreError, UsageError
from cachefs.core.source import Source, StoreKind
from cachefs.local.hashed import HashMemory
from cachefs.local.pushed import PushMemory
from cachefs.ops.globs import chosen
from cachefs.ops.manifest import rows
from cachefs.ops.push import Deletion, Push
from cachefs.ops.pushing import Compare, Rules
from cachefs.ops.throttle import Throttle
from cachefs.ops.tree import Tree

_GROUPS: Final = (Group.REMOTE,)
_NICER: Final = 10
_NICEST: Final = 19


def _configure(parser: Parser) -> None:
    parser.usage = "cachefs push DIR DEST [--manifest FILE] [options]"
    parser.description = (
        "Stores what is new or changed in the directory DIR in DEST: a bucket, a container, or a prefix in one\n"
        "(s3://BUCKET/PREFIX, swift://CONTAINER, file:///DIRECTORY, REMOTE:BUCKET, or a [mounts.NAME]).\n"
        "Modes, owners, times, symbolic links, directories and user.* attributes are kept, so that a mount of DEST\n"
        "shows the same tree. What is there already is neither sent nor read again; what somebody else writes in DEST\n"
        "meanwhile is left as it is, and said. A push that was killed goes on where it was when it is run again.\n"
        "The exit code is 1 if anything could not be pushed."
    )
    parser.add_argument("dir", metavar="DIR", help="the directory to push")
    parser.add_argument("dest", metavar="DEST", help="where to")
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        help="push exactly what this list names (one path a line, NUL-separated, or JSON as `cachefs verify --json` "
        "writes it); - is standard input",
    )
    parser.add_argument(
        "-0", "--null", action="store_true", help="the paths of the list end in NUL"
    )
    _configure_comparison(parser)
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="only tell what would be done"
    )
    parser.add_argument(
        "--delete", action="store_true", help="delete in DEST what DIR does not have"
    )
    parser.add_argument(
        "--max-delete",
        metavar="N",
        type=int,
        help="delete nothing at all if it would be more than N objects",
    )
    parser.add_argument(
        "--include", metavar="PATTERN", action="append", default=[], help="only what matches"
    )
    parser.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="not what matches: patterns as in .gitignore, for both sides",
    )
    parser.add_argument(
        "--follow", action="store_true", help="push what symbolic links lead to, not the links"
    )
    parser.add_argument(
        "--no-xattrs", action="store_true", help="leave out extended attributes (user.*)"
    )
    parser.add_argument(
        "--limit-rate", metavar="SIZE", help="bytes to send in a second, such as 10MiB"
    )
    parser.add_argument(
        "--nice",
        metavar="N",
        nargs="?",
        type=int,
        const=_NICER,
        help=f"give way to other programs on processor and disk [{_NICER} if without a number, up to {_NICEST}]",
    )
    add_json(parser)
    show_mount_options(parser, _GROUPS)


def _configure_comparison(parser: Parser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--checksum",
        dest="compare",
        action="store_const",
        const=Compare.CHECKSUM,
        default=Compare.CHECKSUM,
        help="a file is there if size and MD5 are equal (the default); nothing is hashed twice",
    )
    how.add_argument(
        "--size-only",
        dest="compare",
        action="store_const",
        const=Compare.SIZE,
        help="if the size is",
    )
    how.add_argument(
        "--mtime",
        dest="compare",
        action="store_const",
        const=Compare.MTIME,
        help="if the size is, and the file was not changed after the store took it in",
    )
    parser.add_argument(
        "--ask-attributes",
        action="store_true",
        help="ask the store for mode, owner and times of what no push has stored or seen yet: a request each",
    )


def _run(call: Call) -> int:
    arguments = call.arguments
    _check(call)
    deletion = Deletion(arguments.max_delete) if arguments.delete else None
    wanted = chosen(arguments.include, arguments.exclude)
    throttle = Throttle(byte_rate(arguments.limit_rate))
    config = store_config(call, arguments.dest)
    root = _root(call, config.source)
    if arguments.nice is not None:
        os.nice(arguments.nice)
    rules = Rules(
        compare=arguments.compare,
        dry_run=arguments.dry_run,
        xattrs=not arguments.no_xattrs,
        ask_attributes=arguments.ask_attributes,
    )
    with (
        _list(call) as manifest,
        _memories(call, root, config) as (hashes, memory),
        _explained(call, config.source) as code,
        opened_store(call, config) as store,
    ):
        push = Push(
            Tree(str(root), follow=arguments.follow),
            store,
            hashes,
            memory,
            rules,
            wanted,
            threads=config.store.transfers,
            deletion=deletion,
            throttle=throttle,
            end_waiting=store.give_up,
            likely_parts=(config.store.part_size,),
            large=min(config.store.multipart_threshold, config.store.segment_limit),
        )
        report = Report(call, config.source, f"{root} to {store.description}")
        named = None
        if manifest is not None:
            named = rows(manifest, name=_name(call), null=arguments.null)
        try:
            with (
                bar("pushing", quiet=call.quiet) as shown,
                total_shown(
                    Tree(str(root), follow=arguments.follow),
                    wanted,
                    is_wanted=shown.is_shown and named is None,
                ) as total,
            ):
                for event in push.run(named):
                    report.tell(event, shown, total)
        except BaseException:
            report.sum_up(push, store.requests, interrupted=True)
            raise
        report.sum_up(push, store.requests)
        code.value = EXIT_FAILURES if report.failures else EXIT_DONE
    return code.value


@dataclass(slots=True)
class _Code:
    value: int = EXIT_FAILURES


@contextmanager
def _explained(call: Call, source: Source) -> Iterator[_Code]:
    """Yield the exit code to be; say what ended the push, if anything did."""
    code = _Code()
    try:
        yield code
    except KeyboardInterrupt:
        code.value = EXIT_INTERRUPTED
    except StoreError as error:
        failure = explain(error, doing=f"cannot push to {source}", source=source)
        complain(call.redactor(failure.line))
        code.value = failure.code


def _check(call: Call) -> None:
    arguments = call.arguments
    if arguments.manifest is None and arguments.null:
        raise UsageError("--null says how a list is written — name it by --manifest")
    if arguments.manifest is not None and arguments.delete:
        raise UsageError(
            "--delete needs the whole directory, not a list of some — leave out --manifest"
        )
    if arguments.max_delete is not None and not arguments.delete:
        raise UsageError("--max-delete bounds what --delete does — pass that, too")
    if arguments.max_delete is not None and arguments.max_delete < 0:
        raise UsageError(f"--max-delete {arguments.max_delete} is no number of objects")
    if arguments.nice is not None and not 0 <= arguments.nice <= _NICEST:
        raise UsageError(f"--nice {arguments.nice} is not between 0 and {_NICEST}")


def _root(call: Call, source: Source) -> Path:
    """Return the directory to push. Raise ``UsageError`` unless it is one, apart from where it is to go."""
    if not source.bucket:
        raise UsageError(f"{source} is no bucket — name one, and a prefix if you like")
    given = call.environment.absolute(call.arguments.dir)
    root = Path(os.path.realpath(given))
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "is not there"
        raise UsageError(f"{given} {what} — name the directory to push")
    if source.kind is StoreKind.FILE:
        target = Path(os.path.realpath(source.bucket))
        if target == root or target in root.parents or root in target.parents:
            raise UsageError(f"{given} and {source} lie in one another — choose another DEST")
    return root


def _name(call: Call) -> str:
    given = call.arguments.manifest
    return "standard input" if given == "-" else str(given)


@contextmanager
def _list(call: Call) -> Iterator[BinaryIO | None]:
    given = call.arguments.manifest
    if given is None or given == "-":
        yield None if given is None else sys.stdin.buffer
        return
    try:
        stream = open(call.environment.absolute(given), "rb")  # noqa: SIM115 - it outlives this block
    except OSError as error:
        raise UsageError(f"--manifest {given}: {error.strerror} — name a list of files") from None
    with stream:
        yield stream


@contextmanager
def _memories(
    call: Call, root: Path, config: MountConfig
) -> Iterator[tuple[HashMemory, PushMemory]]:
    """Open what is remembered of this directory and this place."""
    where = hashlib.sha256(os.fsencode(root)).hexdigest()[:10]
    name = f"{cache_id(config.source, config.store, call.environment)}-{where}"
    directory = call.environment.state_root / "push"
    with (
        PushMemory(directory / f"{name}.push.sqlite3") as memory,
        HashMemory(directory / f"{name}.sqlite3") as hashes,
    ):
        yield hashes, memory


COMMAND = Command(_configure, _run, _GROUPS)
