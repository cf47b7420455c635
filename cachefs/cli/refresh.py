"""``cachefs refresh``: forget what is known of names, so that the store is asked anew."""

from pathlib import Path

from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_DONE
from cachefs.cli.output import counted, say, say_json
from cachefs.cli.parser import Parser
from cachefs.client import ControlClient
from cachefs.live import mount_containing

_TIMEOUT_S = 3600.0
"""A mount may know millions of names."""


def _configure(parser: Parser) -> None:
    parser.description = (
        "Forgets what a mount, and the kernel, know of the names and attributes at and below each PATH, before\n"
        "--metadata-ttl has passed: the store is asked anew when they are used next. Cached bytes stay, and are used if they\n"
        "are of the version that the store has then. What waits for its upload is not forgotten."
    )
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="a file or directory in a mount, or the mount"
    )
    add_json(parser)


def _run(call: Call) -> int:
    told = []
    for path in call.arguments.paths:
        running, relative = mount_containing(path, call.environment)
        with ControlClient(Path(running.socket), timeout_s=_TIMEOUT_S) as client:
            answer = client.ask("refresh", path=relative)
        forgotten = int(answer["forgotten"]) if isinstance(answer, dict) else 0
        told.append(
            {"path": f"{running.mountpoint}/{relative}".rstrip("/"), "forgotten": forgotten}
        )
    if call.as_json:
        say_json({"refreshed": told})
    elif not call.quiet:
        for each in told:
            say(f"{each['path']}: {counted(int(str(each['forgotten'])), 'name')} forgotten")
    return EXIT_DONE


COMMAND = Command(_configure, _run)
