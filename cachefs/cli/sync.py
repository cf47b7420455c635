"""``cachefs sync``: bucket to bucket, on any two stores."""

import argparse
import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cachefs.cli import sync_configure
from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_DONE, EXIT_INTERRUPTED, explain
from cachefs.cli.jobs import bar, byte_rate
from cachefs.cli.output import complain
from cachefs.cli.parser import Parser, show_mount_options
from cachefs.cli.sync_report import Report
from cachefs.cli.sync_sides import End, Unusable, ends, job_id, opened
from cachefs.config.option import Group
from cachefs.core.errors import CachefsError, Denied, InUse, UsageError
from cachefs.core.source import Source, StoreKind
from cachefs.core.types import Key
from cachefs.local.ledger import FileLedger
from cachefs.ops.bucketsync import Event, carried_out, compared, require_few, sweep
from cachefs.ops.events import Progress
from cachefs.ops.globs import Chosen, chosen
from cachefs.ops.sync_content import Contents, Side
from cachefs.ops.sync_copy import Copier
from cachefs.ops.sync_plan import Near, Plan, by_listed_content, by_time, unless_cut_off
from cachefs.ops.throttle import Throttle
from cachefs.remote.retry import Retrying

_GROUPS: Final = (Group.REMOTE,)
_ACTIONS: Final = ("configure", "dryrun", "copy", "sync", "help")
_MOST_DELETED: Final = 1000


def _configure(parser: Parser) -> None:
    parser.usage = "cachefs sync configure|dryrun|copy|sync|help [FROM TO] [options]"
    parser.description = (
        "Brings the bucket TO up to the bucket FROM, on any two stores (s3://, swift://, file://, REMOTE:BUCKET), each a\n"
        "bucket or a prefix in one. Without FROM and TO it is the two that were configured.\n\n"
        "  configure   ask for the buckets and the keys, and keep them\n"
        "  dryrun      write lists of what would be done: new.txt, modified.txt, duplicate_stores.txt\n"
        "  copy        copy what is new and modified\n"
        "  sync        copy, then delete what FROM no longer has\n"
        "  help        show this\n\n"
        "A file is modified if FROM's is newer than TO's, or not as long; with --checksum if its content is another.\n"
        "Nothing is overwritten or deleted but what the listing showed. A run that was cut off is simply run again: it\n"
        "goes on where it was. The exit code is 1 if anything failed; that there is something to do is no failure."
    )
    parser.add_argument("action", metavar="COMMAND", choices=_ACTIONS, help=argparse.SUPPRESS)
    parser.add_argument("source", metavar="FROM", nargs="?", help="the bucket to copy from")
    parser.add_argument("target", metavar="TO", nargs="?", help="the bucket to copy to")
    parser.add_argument(
        "--out", metavar="DIR", default="out", help="where the lists and the report go [out]"
    )
    parser.add_argument(
        "--checksum",
        action="store_true",
        help="compare content, not times: by ETags, and where those do not tell by a request to each side",
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="as dryrun")
    parser.add_argument(
        "--max-delete",
        metavar="N",
        help=f"sync: do nothing at all if more than N objects would be deleted [{_MOST_DELETED}, but not all of them]",
    )
    parser.add_argument(
        "--include", metavar="PATTERN", action="append", default=[], help="only keys that match"
    )
    parser.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="not keys that match: patterns as in .gitignore, for both buckets",
    )
    parser.add_argument(
        "--limit-rate",
        metavar="SIZE",
        help="bytes in a second through this machine, such as 10MiB",
    )
    parser.add_argument(
        "--settings", metavar="FILE", help="what configure writes [~/.config/cachefs/sync.ini]"
    )
    sync_configure.declare(parser)
    add_json(parser)
    show_mount_options(parser, _GROUPS)
    parser.set_defaults(show_help=parser.print_help)


def _run(call: Call) -> int:
    arguments = call.arguments
    if arguments.action == "help":
        arguments.show_help()
        return EXIT_DONE
    if arguments.action == "configure":
        return sync_configure.run(call)
    sync_configure.require_none(call)
    wanted = _Wanted(
        is_dry=arguments.action == "dryrun" or arguments.dry_run,
        deleting=arguments.action == "sync",
        most_deleted=_number(arguments.max_delete),
        rate=byte_rate(arguments.limit_rate),
        chosen=chosen(arguments.include, arguments.exclude),
    )
    source, target = ends(call)
    with (
        _output(call) as out,
        Plan(out) as plan,
        Report(call, out, plan, _either(source, target)) as report,
    ):
        try:
            return _Sync(call, wanted, source, target, out, plan, report).run()
        except KeyboardInterrupt:
            report.done(is_whole=False)
            return EXIT_INTERRUPTED
        except CachefsError as error:
            if report.has_any:
                report.done(is_whole=False)
            return _failed(call, error, source, target)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the words asked for."""

    is_dry: bool
    deleting: bool
    most_deleted: int | None
    """None: nobody has said."""
    rate: int | None
    chosen: Chosen


@dataclass(frozen=True, slots=True)
class _Sync:
    """One run."""

    call: Call
    wanted: _Wanted
    source: End
    target: End
    out: Path
    plan: Plan
    report: Report

    def run(self) -> int:
        """Do it all, and return the exit code."""
        is_within = self.source.shares_server(self.target)
        origin = self.source.source if is_within else None
        with opened(self.source) as near, opened(self.target, copies_from=origin) as far:
            if self.wanted.is_dry:
                self._compare(near, far, self._begun())
                return self.report.planned()
            with self._ledger() as ledger:
                self._compare(near, far, ledger.begun())
                if self.wanted.deleting:
                    most = self.wanted.most_deleted
                    require_few(
                        self.plan,
                        _MOST_DELETED if most is None else most,
                        is_meant=most is not None,
                    )
                far.keep_ledger(ledger)
                if any(self.plan.files.values()):
                    self._carry_out(near, far, ledger, is_within=is_within)
                if not self.report.failed:
                    sweep(far, ledger.all())
                    if self.wanted.chosen.takes_all:
                        ledger.end_all()
        return self.report.done()

    def _ledger(self) -> FileLedger:
        return FileLedger(
            self._ledger_path, job=f"a sync from {self.source.source} to {self.target.source}"
        )

    @property
    def _ledger_path(self) -> Path:
        name = job_id(self.source, self.target, self.call)
        return self.call.environment.state_root / "sync" / f"{name}.sqlite3"

    def _begun(self) -> frozenset[Key]:
        """Return which copies were begun and not seen through; none, where a run is at it at this moment."""
        if not self._ledger_path.exists():
            return frozenset()
        try:
            with self._ledger() as ledger:
                return ledger.begun()
        except InUse:
            return frozenset()

    def _compare(self, near: Retrying, far: Retrying, begun: frozenset[Key]) -> None:
        self._follow(self._compared(near, far, begun), "comparing")
        self.plan.write_lists(self.out)

    def _compared(
        self, near: Retrying, far: Retrying, begun: frozenset[Key]
    ) -> Generator[Event, None, None]:
        asked = Contents(_side(near, self.source), _side(far, self.target))
        return compared(
            near,
            far,
            self.plan,
            chosen=self.wanted.chosen,
            rule=by_listed_content
            if self.call.arguments.checksum
            else unless_cut_off(by_time, begun),
            ask=asked.differs,
            date_source=Near.source() if asked.source.is_near else None,
            date_target=Near.target() if asked.target.is_near else None,
            threads=self.target.config.store.transfers,
        )

    def _carry_out(
        self, near: Retrying, far: Retrying, ledger: FileLedger, *, is_within: bool
    ) -> None:
        if far.probe().writable is False:
            raise Denied(f"nothing may be written to {self.target.source}")
        copier = Copier(
            near,
            far,
            is_within=is_within,
            hash_first=self.source.source.kind is StoreKind.FILE,
            throttle=Throttle(self.wanted.rate),
            begun=ledger,
        )

        def stop() -> None:
            copier.stop()
            near.give_up()
            far.give_up()
            if is_within:
                far.close()  # ends a copy of many parts after those that are under way

        events = carried_out(
            self.plan,
            near,
            far,
            copier,
            stop=stop,
            threads=self.target.config.store.transfers,
            deleting=self.wanted.deleting,
        )
        self._follow(events, "copying")

    def _follow(self, events: Generator[Event, None, None], doing: str) -> None:
        with closing(events), bar(doing, quiet=self.call.quiet) as shown:
            for event in events:
                if isinstance(event, Progress):
                    shown.show(event)
                else:
                    self.report.take(event)


@contextmanager
def _output(call: Call) -> Iterator[Path]:
    """Lend the directory of lists and report, which no other run has meanwhile."""
    out = call.environment.absolute(call.arguments.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        fd = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot use {out}: {error.strerror} — choose another --out") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield out
    except BlockingIOError:
        raise InUse(
            f"another sync writes to {out} — wait until it ends, or choose another --out"
        ) from None
    finally:
        os.close(fd)


def _either(source: End, target: End) -> Source | None:
    """Return a source on the kind of store that both are on; None: they are on two kinds."""
    return target.source if source.source.kind is target.source.kind else None


def _side(store: Retrying, end: End) -> Side:
    return Side(store, is_near=end.source.kind is StoreKind.FILE)


def _failed(call: Call, error: CachefsError, source: End, target: End) -> int:
    if isinstance(error, Unusable):
        where = error.end.config.store.endpoint_url
        failure = explain(
            error.error,
            doing=f"cannot sync with {error.end.source}",
            source=error.end.source,
            at=f" at {where}" if where else "",
        )
    else:
        what = f"cannot sync {source.source} to {target.source}"
        doing = "" if isinstance(error, UsageError) else what
        failure = explain(error, doing=doing, source=_either(source, target))
    complain(call.redactor(failure.line))
    return failure.code


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"--max-delete {text} is not a number — for example --max-delete 1000")
    return int(text)


COMMAND = Command(_configure, _run, option_groups=_GROUPS)
