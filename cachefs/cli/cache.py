"""``cachefs cache``: the database of cache directories, what it records of objects and their MD5s."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cachefs.cli import cache_check, cache_cleanup, cache_stats, cache_vacuum
from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.parser import Parser, show_mount_options
from cachefs.config.option import Group
from cachefs.config.options import MOUNT_OPTIONS
from cachefs.core.errors import UsageError

_GROUPS: Final = (Group.CACHE, Group.REMOTE)


@dataclass(frozen=True, slots=True)
class _Action:
    """One of the things that can be done."""

    run: Callable[[Call], int]
    takes: frozenset[str]
    """Its options, as argparse calls them."""
    settings: frozenset[str] = frozenset({"cache-dir"})
    """The mount options that mean something to it."""


def _migrate(call: Call) -> int:
    from cachefs.cli import cache_migrate  # the SDKs, only where they are needed

    return cache_migrate.run(call)


_ACTIONS: Final = {
    "stats": _Action(cache_stats.run, frozenset({"bucket", "remote"})),
    "check": _Action(cache_check.run, frozenset({"repair"})),
    "cleanup": _Action(cache_cleanup.run, frozenset({"bucket", "remote", "all", "yes"})),
    "vacuum": _Action(cache_vacuum.run, frozenset()),
    "migrate": _Action(
        _migrate,
        frozenset({"bucket", "remote", "dry_run"}),
        frozenset(option.name for option in MOUNT_OPTIONS if option.group is Group.REMOTE)
        | {"cache-dir"},
    ),
}


def _configure(parser: Parser) -> None:
    parser.usage = f"cachefs cache {'|'.join(_ACTIONS)} [MOUNT | --cache-dir DIR] [options]"
    parser.description = (
        "Looks after the database of a cache: what it records of objects, and their MD5s.\n\n"
        "  stats     tell how many objects are recorded, their bytes, how many have an MD5, how many are cached\n"
        "  cleanup   remove records of --bucket, of --remote, or --all: MD5s, and where no mount serves them the names of\n"
        "            objects of which nothing is cached. Objects, cached bytes, pins and what waits for upload stay\n"
        "  vacuum    give back what is unused in the database, under a mount a little at a time\n"
        "  migrate   find out the MD5s that are missing: told by the store, or by reading the objects, --transfers at a time.\n"
        "            What was found is kept at once: a run that was cut off goes on where it was. --dry-run tells how much\n"
        "            would be read. The exit code is 1 if any could not be found out\n"
        "  check     tell whether a cache is sound: its database, its files, the checksums of what is cached; asks no store.\n"
        "            The exit code is 1 where something is wrong and stays so\n\n"
        "MOUNT is a mountpoint, a [mounts.NAME] or a source. Without it, and without --cache-dir, every cache directory\n"
        "that is known is meant, and the database of MD5s that programs have made by cachefs.MetadataDB."
    )
    parser.add_argument(
        "action", metavar="COMMAND", choices=tuple(_ACTIONS), help=argparse.SUPPRESS
    )
    parser.add_argument("of", metavar="MOUNT", nargs="?", help="which cache is meant")
    parser.add_argument("--bucket", metavar="BUCKET", help="only this bucket or container")
    parser.add_argument(
        "--remote",
        "--workspace",
        "--backend-config",
        metavar="REMOTE",
        help="only caches of this store: a source (s3://, s3://BUCKET) or a [remotes.NAME]",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="check: give up clean files that are broken, and make a damaged database anew where no mount uses it; "
        "what waits for upload is never given up",
    )
    parser.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        help="migrate: tell what would be read, and read nothing",
    )
    parser.add_argument("--all", action="store_true", help="cleanup: of every bucket; asks first")
    parser.add_argument("--yes", action="store_true", help="cleanup --all: do not ask")
    add_json(parser)
    show_mount_options(parser, _GROUPS)


def _run(call: Call) -> int:
    action = _ACTIONS[call.arguments.action]
    known = frozenset().union(*(each.takes for each in _ACTIONS.values()))
    for name in sorted(known - action.takes):
        if getattr(call.arguments, name) not in (None, False):
            raise UsageError(
                f"--{name.replace('_', '-')} means nothing to cachefs cache {call.arguments.action}"
            )
    for setting in call.given.settings:
        if setting.name not in action.settings:
            raise UsageError(
                f"{setting.said} means nothing to cachefs cache {call.arguments.action}"
            )
    return action.run(call)


COMMAND = Command(_configure, _run, option_groups=_GROUPS)
