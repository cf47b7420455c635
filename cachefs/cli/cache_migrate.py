"""``cachefs cache migrate``: finds out the MD5s that are missing, by reading only what nothing else tells."""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cachefs.cli.caches import cache_dirs, config_of
from cachefs.cli.command import Call
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES, EXIT_INTERRUPTED, explain
from cachefs.cli.jobs import bar
from cachefs.cli.output import complain, counted, human_size, on_one_line, printable, say, say_json
from cachefs.cli.stores import opened_store, store_config
from cachefs.config import MountConfig, read_config_file
from cachefs.core.errors import CachefsError, StoreError, UsageError
from cachefs.core.source import StoreKind
from cachefs.core.types import Key
from cachefs.known import Remotes, has_cache
from cachefs.local.shared import SharedDatabase
from cachefs.metadata_db import MetadataDB
from cachefs.ops.events import Failed, Progress
from cachefs.ops.migrate import Counts, Migration

_MOST_TOLD: Final = 20
"""Failures that are named; of the others there is only a number."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One store, and where its MD5s are kept."""

    config: MountConfig
    cache_dir: Path | None
    """None: there is no cache of it; the user's own database takes them."""


def run(call: Call) -> int:
    """Do it, for one store after the other."""
    code = EXIT_DONE
    for job in _jobs(call):
        try:
            code = max(code, _migrate(call, job))
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
    return code


# ---- what is meant ---------------------------------------------------------------------------------


def _jobs(call: Call) -> list[_Job]:
    """Return the stores that are meant. Raise ``UsageError`` where there is none."""
    bucket, remote = call.arguments.bucket, call.arguments.remote
    is_named = call.arguments.of is not None or any(
        each.name == "cache-dir" for each in call.given.settings
    )
    jobs = list(_of_caches(call, is_named=is_named))
    if not jobs and remote is not None and not is_named:
        named = remote if ":" in remote else f"{remote}:{bucket or ''}"
        jobs = [_Job(store_config(call, named), None)]
    if bucket is not None:
        jobs = [job for job in jobs if job.config.source.bucket in ("", bucket)]
    if not jobs:
        raise UsageError(
            "no cache of that is known — name a mount, a --cache-dir with its source, or a --remote"
        )
    return jobs


def _of_caches(call: Call, *, is_named: bool) -> Iterator[_Job]:
    remotes = Remotes(read_config_file(call.environment), call.environment)
    remote = call.arguments.remote
    if remote is not None:
        remotes.require(remote)
    for cache_dir in cache_dirs(call):
        if not has_cache(cache_dir):
            yield _Job(store_config(call, call.arguments.of), None)
            continue
        try:
            if remote is not None and not remotes.means(
                remote, cache_dir, _description(cache_dir)
            ):
                continue
            config = config_of(
                call, cache_dir, how=f"cachefs cache migrate --cache-dir {cache_dir} s3://BUCKET"
            )
        except CachefsError as error:
            if is_named:
                raise
            complain(call.redactor(f"{cache_dir} is left out: {error}"))
            continue
        yield _Job(config, cache_dir)


def _description(cache_dir: Path) -> str:
    with SharedDatabase(cache_dir) as rows:
        return rows.get_meta("source") or ""


# ---- one store -------------------------------------------------------------------------------------


def _migrate(call: Call, job: _Job) -> int:
    source, is_dry = job.config.source, call.arguments.dry_run
    prefix = Key("")
    if call.arguments.bucket and not source.bucket and source.kind is not StoreKind.MEMORY:
        prefix = Key(f"{call.arguments.bucket}/")
    with opened_store(call, job.config) as store, MetadataDB(job.cache_dir) as db:
        migration = Migration(
            store,
            source,
            db,
            prefix=prefix,
            threads=job.config.store.transfers,
            is_dry=is_dry,
            end_waiting=store.give_up,
        )
        report = _Report(call, job, migration.counts)
        try:
            _show(call, report, migration.run())
        except KeyboardInterrupt:
            migration.stop()
            report.sum_up(is_interrupted=True)
            raise
        except StoreError as error:
            failure = explain(error, source=source)
            complain(call.redactor(failure.line))
            report.sum_up(is_interrupted=True)
            return failure.code
        report.sum_up()
        return EXIT_FAILURES if migration.counts.failed else EXIT_DONE


def _show(call: Call, report: "_Report", events: Generator[Failed | Progress, None, None]) -> None:
    doing = "looking" if call.arguments.dry_run else "reading"
    with contextlib.closing(events), bar(doing, quiet=call.quiet or call.as_json) as shown:
        for event in events:
            if isinstance(event, Progress):
                shown.show(event)
            else:
                report.failed(event)


class _Report:
    """What is said of one store."""

    def __init__(self, call: Call, job: _Job, counts: Counts) -> None:
        self._call = call
        self._job = job
        self._counts = counts
        self._failures: list[Failed] = []

    def failed(self, event: Failed) -> None:
        if len(self._failures) < _MOST_TOLD:
            self._failures.append(event)
            why = " ".join(str(event.error).split()) or type(event.error).__name__
            complain(self._call.redactor(f"{on_one_line(event.path)}: {why}"))

    def sum_up(self, *, is_interrupted: bool = False) -> None:
        counts, call = self._counts, self._call
        if call.as_json:
            told = {"source": str(self._job.config.source), "dry_run": call.arguments.dry_run}
            say_json(told | asdict(counts) | {"is_interrupted": is_interrupted}, stream=True)
            return
        if call.quiet:
            return
        verb = "would be read" if call.arguments.dry_run else "read"
        line = (
            f"{self._job.config.source}: {counted(counts.objects, 'object')}, {counts.known} known already,"
            f" {counts.told} told by the store, {counts.read} {verb} ({human_size(counts.read_bytes)}),"
            f" {counts.failed} failed"
        )
        say(printable(line))
        if is_interrupted:
            say("interrupted; run it again, and it goes on where it was")
