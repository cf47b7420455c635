"""``cachefs cache cleanup``: removes records of objects, and no object, cached byte or change that waits for upload."""

import sys
from contextlib import suppress
from pathlib import Path

from cachefs.cli.cache_databases import opened
from cachefs.cli.command import Call
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES
from cachefs.cli.output import counted, say, say_json
from cachefs.client import ControlClient, NoDaemon
from cachefs.core.errors import InUse, UsageError
from cachefs.known import DATABASE, SOCKET_NAME
from cachefs.metadata_db import MetadataDB


def run(call: Call) -> int:
    """Do it, and tell how much it was."""
    bucket, remote = call.arguments.bucket, call.arguments.remote
    if call.arguments.all and (bucket or remote):
        raise UsageError(
            "--all is of every bucket of every store — leave out --bucket and --remote, or --all"
        )
    if not (call.arguments.all or bucket or remote):
        raise UsageError(
            "say what to remove records of: --bucket BUCKET, --remote REMOTE, or --all"
        )
    if call.arguments.yes and not call.arguments.all:
        raise UsageError("--yes answers what --all asks — leave it out")
    with opened(call) as db:
        if call.arguments.all and not _is_wanted(call, db):
            say("nothing was removed")
            return EXIT_FAILURES
        if bucket:
            md5s = db.cleanup_bucket(bucket, remote=remote)
        elif remote:
            md5s = db.cleanup_workspace(remote)
        else:
            md5s = sum(db.cleanup_bucket(each) for each in db.list_buckets())
        directories = [
            path.parent for path in db.databases(remote=remote) if path.name == DATABASE
        ]
    names, mounted = 0, []
    for cache_dir in directories:
        forgotten = _forget_names(cache_dir, bucket)
        if forgotten is None:
            mounted.append(str(cache_dir))
        names += forgotten or 0
    _tell(call, md5s, names, mounted)
    return EXIT_DONE


def _is_wanted(call: Call, db: MetadataDB) -> bool:
    """Whether the operator is sure."""
    if call.arguments.yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(
            "--all removes the records of every bucket — pass --yes where nobody can be asked"
        )
    print(
        f"This removes what {counted(len(db.databases()), 'database')} record of objects. Objects, cached bytes and what "
        "waits for upload stay. Go on? [y/N] ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _forget_names(cache_dir: Path, bucket: str | None) -> int | None:
    """Forget names of which nothing is cached. Return how many; None: a mount serves them."""
    with suppress(NoDaemon):
        ControlClient(cache_dir / SOCKET_NAME).close()
        return None
    from cachefs.engine.recovery import open_cache

    try:
        with open_cache(cache_dir) as cache:
            return cache.forget_names(bucket)
    except InUse:  # a mount that begins, or ends
        return None


def _tell(call: Call, md5s: int, names: int, mounted: list[str]) -> None:
    if call.as_json:
        say_json({"md5s": md5s, "names": names, "mounted": mounted})
    elif not call.quiet:
        say(
            f"Removed {counted(md5s, 'MD5')} and {counted(names, 'name')} of objects that are not cached"
        )
        if mounted:
            say(f"  names stay that a mount serves: {', '.join(mounted)}")
