"""``cachefs cache``: the database of cache directories, what it records of objects and their MD5s."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cachefs.cli import cache_check, cache_stats
from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.parser import Parser, show_mount_options
from cachefs.config.option import Group
from cachefs.core.errors import UsageError

_GROUPS: Final = (Group.CACHE,)


@dataclass(frozen=True, slots=True)
class _Action:
    """One of the things that can be done."""

    run: Callable[[Call], int]
    takes: frozenset[str]
    """Its options, as argparse calls them."""
    settings: frozenset[str] = frozenset({"cache-dir"})
    """The mount options that mean something to it."""


_ACTIONS: Final = {
    "stats": _Action(cache_stats.run, frozenset({"bucket", "remote"})),
    "check": _Action(cache_check.run, frozenset({"repair"})),
}


def _configure(parser: Parser) -> None:
    parser.usage = f"cachefs cache {'|'.join(_ACTIONS)} [MOUNT | --cache-dir DIR] [options]"
    parser.description = (
        "Looks after the database of a cache: what it records of objects, and their MD5s.\n\n"
        "  stats     tell how many objects are recorded, their bytes, how many have an MD5, how many are cached\n"
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
        metavar="REMOTE",
        help="only caches of this store: a source (s3://, s3://BUCKET) or a [remotes.NAME]",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="check: give up clean files that are broken, and make a damaged database anew where no mount uses it; "
        "what waits for upload is never given up",
    )
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
