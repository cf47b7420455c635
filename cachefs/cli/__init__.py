"""The command ``cachefs``: finds the verb, runs it, and turns what went wrong into one line and an exit code.

Only the module of the verb that was asked for is loaded, so that ``status`` does not wait for an SDK.
"""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

import cachefs
from cachefs.cli import failures
from cachefs.cli.command import Call, Command
from cachefs.cli.failures import EXIT_FAILURES, EXIT_INTERRUPTED
from cachefs.cli.logs import log_to_stderr
from cachefs.cli.output import complain
from cachefs.cli.parser import Parser, check_left_over
from cachefs.cli.redaction import Redactor
from cachefs.config import Environment, current
from cachefs.config.given import Given, read_arguments
from cachefs.config.settings import suggestion
from cachefs.core.errors import UsageError

COMMANDS: Final = {
    "mount": "mount a bucket, a container or a directory of objects",
    "umount": "upload what waits, then unmount",
    "status": "tell what is mounted, cached, waiting and wrong",
    "explain": "tell where a file's bytes are, and why",
    "refresh": "forget what is known of names, so that the store is asked anew",
    "flush": "upload changed files now",
    "preheat": "fetch files into the cache before programs ask for them",
    "prune": "make room in a cache, by a policy",
    "pin": "fetch files, and keep them in the cache",
    "unpin": "let pinned files go like any other",
    "simulate": "tell which eviction policy and cache size a recorded workload calls for",
    "verify": "tell whether the store has what is here, by checksum",
    "push": "store a directory in a bucket: what is new or changed, or what a list names",
    "cache": "look after the database: what is recorded of objects, and their MD5s",
    "recover": "list, upload, export or discard what a crash left behind",
    "sync": "copy what is new in one bucket to another, on any two stores",
    "pool": "give programs local files for objects, by the s3pool protocol",
    "demo": "a guided tour on a store in a temporary directory",
}
"""Every verb, with what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (the process's own, unless given) and return its exit code."""
    environment = current()
    words = list(sys.argv[1:] if argv is None else argv)
    redactor = Redactor(environment.secrets())
    try:
        return _run(words, environment, redactor)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SystemExit as end:  # argparse, after --help
        return end.code if isinstance(end.code, int) else 2
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILURES
    except BaseExceptionGroup as error:
        return _fail(error, redactor)
    except Exception as error:  # noqa: BLE001 - the last line of defence; logged with its traceback
        return _fail(error, redactor)


def build_parser(name: str) -> Parser:
    """Return the parser of the verb *name*."""
    parser = Parser(prog=f"cachefs {name}")
    command = _load(name)
    command.configure(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on standard error")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    return parser


def overview() -> str:
    """Return what ``cachefs --help`` shows."""
    verbs = "\n".join(f"  {name:8} {what}" for name, what in COMMANDS.items())
    return (
        "usage: cachefs COMMAND [ARGUMENTS]\n\n"
        "Mounts an object store as a drive, with a write-back cache on the local disk.\n\n"
        f"commands:\n{verbs}\n\n"
        "cachefs COMMAND --help tells more. The exit code is 0 when done, 1 when it ran and found failures,\n"
        "2 for wrong usage, 3 when the store refused, 4 when it cannot be reached, 5 when data still waits\n"
        "for upload, 130 when interrupted."
    )


def _run(words: list[str], environment: Environment, redactor: Redactor) -> int:
    if words and words[0] in {"-h", "--help", "help"}:
        print(overview())
        return 0
    if words and words[0] in {"--version", "-V"}:
        print(f"cachefs {cachefs.__version__}")
        return 0
    name = _verb(words)
    command = _load(name)
    parser = build_parser(name)
    groups = command.option_groups
    given, rest = read_arguments(words[1:], groups) if groups else (Given(), words[1:])
    arguments, left_over = parser.parse_known_args(parser.with_dashes(rest))
    check_left_over(left_over, parser, mounting=bool(groups))
    log_to_stderr(redactor, verbose=arguments.verbose, quiet=arguments.quiet)
    return command.run(Call(arguments, given, tuple(words[1:]), environment, redactor))


def _verb(words: list[str]) -> str:
    if not words:
        raise UsageError(f"no command given — one of {', '.join(COMMANDS)}; see cachefs --help")
    if words[0] not in COMMANDS:
        hint = suggestion(words[0], COMMANDS) or " — see cachefs --help"
        kind = "option" if words[0].startswith("-") else "command"
        raise UsageError(f"unknown {kind} {words[0]}{hint}")
    return words[0]


def _load(name: str) -> Command:
    module = importlib.import_module(f"cachefs.cli.{name}")
    command: Command = module.COMMAND
    return command


def _fail(error: BaseException, redactor: Redactor) -> int:
    failure = failures.explain(
        error
    )  # by its module: that of the verb `explain` takes the bare name
    complain(redactor(failure.line))
    if failure.unexpected:
        logging.getLogger("cachefs").debug("this should not have happened", exc_info=error)
    return failure.code
