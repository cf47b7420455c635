"""``cachefs unpin``: what was pinned may be evicted again."""

from cachefs.cli.command import Command, add_json
from cachefs.cli.parser import Parser
from cachefs.cli.pin import run_unpin


def _configure(parser: Parser) -> None:
    parser.usage = "cachefs unpin PATH..."
    parser.description = (
        "Lets files go that cachefs pin has kept: they stay in the cache until its room is wanted for others. A\n"
        "directory stands for all files that are in it, and below."
    )
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="a file or a directory in a running mount"
    )
    add_json(parser)


COMMAND = Command(_configure, run_unpin)
