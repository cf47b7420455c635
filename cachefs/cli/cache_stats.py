"""``cachefs cache stats``: what is recorded of the objects of each bucket."""

from cachefs.cli.cache_databases import opened
from cachefs.cli.command import Call
from cachefs.cli.failures import EXIT_DONE
from cachefs.cli.output import human_size, say, say_json
from cachefs.metadata_db import BucketCounts, Counts


def run(call: Call) -> int:
    """Tell it."""
    with opened(call) as db:
        counts = db.get_stats(bucket_name=call.arguments.bucket, remote=call.arguments.remote)
    if call.as_json:
        say_json(counts)
        return EXIT_DONE
    if not counts["buckets"]:
        if not call.quiet:
            say("nothing is recorded" + _of(call))
        return EXIT_DONE
    say("Cache Statistics\n\nOverall Statistics:")
    for line in _lines(counts, "Total files", "Total size", "Oldest entry", "Newest entry"):
        say(f"  {line}")
    say("\nPer-Bucket Statistics:")
    for each in counts["buckets"]:
        say(
            f"\n  Bucket {each['bucket']}"
            + (f" ({each['remote']})" if each["remote"] else "")
            + ":"
        )
        for line in _lines(each, "Files", "Size", "Oldest", "Newest"):
            say(f"    {line}")
    return EXIT_DONE


def _of(call: Call) -> str:
    bucket, remote = call.arguments.bucket, call.arguments.remote
    return (f" of bucket {bucket}" if bucket else "") + (f" of {remote}" if remote else "")


def _lines(
    counts: Counts | BucketCounts, files: str, size: str, oldest: str, newest: str
) -> list[str]:
    total = counts["total_files"]
    told = [
        f"{files}: {total}",
        f"{size}: {human_size(counts['total_size'])}",
        f"With MD5: {_share(counts['with_md5'], total)}",
        f"Cached: {_share(counts['cached_files'], total)}, {human_size(counts['cached_bytes'])} on disk",
    ]
    for name, moment in ((oldest, counts["oldest_entry"]), (newest, counts["newest_entry"])):
        if moment is not None:
            told.append(f"{name}: {moment}")
    return told


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})" if whole else str(part)
