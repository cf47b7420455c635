"""``cachefs pool``: local files for objects, for programs that speak the s3pool protocol; and its client."""

import argparse
import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cachefs.cli.checks import check_pool
from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.daemon import Announcer, launch
from cachefs.cli.failures import EXIT_DONE, explain
from cachefs.cli.output import complain, say_json
from cachefs.cli.parser import Parser, show_mount_options
from cachefs.config import MountConfig, mount_config, read_config_file
from cachefs.config.option import Group
from cachefs.config.pool import LOOPBACK, PoolConfig
from cachefs.config.quantities import parse_lease
from cachefs.config.settings import Origin, Setting
from cachefs.core.errors import UsageError
from cachefs.poolclient import Pool
from cachefs.preparing import check_cache_dir

_GROUPS: Final = tuple(group for group in Group if group is not Group.POOL)
_WITHOUT: Final = ("foreground",)
LOG_NAME: Final = "log/pool.log"

_DESCRIPTION = """\
Gives programs local files for objects, by the s3pool protocol, from a cache below HOMEDIR: fetched once for any
number of clients, held against the store's version at each PULL, evicted when there is no room.

SOURCE is what the buckets are of: s3:// (the default), swift://, REMOTE: or file:///DIRECTORY, whose top directories
are the buckets; or one bucket, as s3://BUCKET.

It listens at 127.0.0.1:PORT and at HOMEDIR/pool.sock, which is for its user alone. Whoever can connect can read and
write what the credentials can: other addresses (--listen) want a token. Files are seen at HOMEDIR/data/BUCKET/KEY,
with KEY__meta__ beside, for as long as the lease lasts (--lease) and on until room is needed; what is open by then can be
read on. Files are pushed from HOMEDIR/tmp alone, and from where --push-from says.
"""
_CLIENT = """\
Client commands ask the pool at -p PORT (of --listen, else of this machine) or in -D HOMEDIR:

  pull BUCKET KEY…        the path of a local file for each key, a line each
  push BUCKET KEY FILE    stores FILE
  glob BUCKET PATTERN     the keys that match: * and ? within a part, ** across, [a-z]
  refresh BUCKET          has the store asked anew
  status                  counts and settings
"""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What a pool is started with, checked."""

    pool: PoolConfig
    pid_file: Path | None
    config: MountConfig


def _configure(parser: Parser) -> None:
    parser.usage = (
        "cachefs pool -p PORT -D HOMEDIR [SOURCE] [options]\n"
        "       cachefs pool pull|push|glob|refresh|status [-p PORT | -D HOMEDIR] [ARGUMENTS]"
    )
    parser.description = f"{_DESCRIPTION}\n{_CLIENT}"
    parser.add_argument("words", metavar="SOURCE", nargs="*", help=argparse.SUPPRESS)
    add = parser.add_argument
    add("-p", "--port", type=int, metavar="PORT", help="TCP port")
    add("-D", "--home", metavar="HOMEDIR", help="the pool's directory: log/, tmp/, data/, cache/")
    add("-n", "--no-daemon", action="store_true", help="stay in the foreground, and log there")
    add(
        "-c",
        "--concurrency",
        type=int,
        default=20,
        metavar="N",
        help="objects pulled at a time [20]",
    )
    add("-pidfile", "--pidfile", metavar="FILE", help="where to write the daemon's process id")
    add("--listen", default=LOOPBACK, metavar="ADDRESS", help="address to listen at [127.0.0.1]")
    add("--token-file", metavar="FILE", help="file with the token that TCP clients must know")
    add("--lease", default="5m", metavar="TIME", help="how long a path stays good [5m]")
    add(
        "--push-from",
        action="append",
        default=[],
        metavar="DIR",
        help="directory from which files may be pushed; may be repeated",
    )
    add(
        "--refresh-interval",
        type=int,
        default=5,
        metavar="MINUTES",
        help="after how long the list of a bucket's keys is made anew [5]",
    )
    add(
        "--glob-prefix-only",
        action="store_true",
        help="let GLOB go by what is in front of the first * or ? alone, as s3pool does",
    )
    add("--ready-fd", type=int, help=argparse.SUPPRESS)
    add_json(parser)
    show_mount_options(parser, _GROUPS, without=_WITHOUT)


def _run(call: Call) -> int:
    words: list[str] = call.arguments.words
    if words and words[0] in _CLIENTS:
        return _ask(call, words[0], words[1:])
    plan = _plan(call, words)
    doing = f"cannot start the pool of {plan.config.source}"
    is_daemon = call.arguments.ready_fd is not None
    announcer = Announcer(call.arguments.ready_fd) if is_daemon else None
    if announcer is not None or call.arguments.no_daemon:
        from cachefs.cli.pool_daemon import stay  # which loads an SDK

        return stay(call, plan, announcer)
    try:
        check_cache_dir(plan.config.cache_dir, call.environment)
    except Exception as error:  # noqa: BLE001 - said, not swallowed
        failure = explain(error, doing=doing, source=plan.config.source)
        complain(call.redactor(failure.line))
        return failure.code
    found = launch(
        call.words, call.environment, log_file=plan.pool.home / LOG_NAME, doing=doing, verb="pool"
    )
    if found is None:
        return EXIT_DONE
    complain(call.redactor(found.line))
    return found.code


def _plan(call: Call, words: list[str]) -> PoolPlan:
    arguments, environment = call.arguments, call.environment
    if len(words) > 1:
        raise UsageError(f"unexpected argument {words[1]!r} — see cachefs pool --help")
    if arguments.home is None:
        raise UsageError("no directory given — for example cachefs pool -p 9999 -D /var/lib/pool")
    home = environment.absolute(arguments.home)
    if arguments.port is not None and not 0 <= arguments.port < 2**16:
        raise UsageError(f"-p {arguments.port} is no port — for example -p 9999")
    if arguments.concurrency < 1:
        raise UsageError("-c must be at least 1")
    if arguments.refresh_interval < 2:
        raise UsageError("--refresh-interval must be at least 2 minutes")
    own = (
        Setting("cache-dir", str(home / "cache"), Origin.COMMAND, "-D {}"),
        Setting("min-free", "10%", Origin.COMMAND, "-D {}"),
    )
    config = mount_config(
        words[0] if words else "s3://",
        None,
        own + call.given.settings,
        file=read_config_file(environment),
        environment=environment,
    )
    token = _token(call)
    _check_address(arguments.listen, token)
    pool = PoolConfig(
        home=home,
        port=arguments.port,
        lease_s=_lease(arguments.lease),
        push_from=(home / "tmp", *map(environment.absolute, arguments.push_from)),
        umask=_umask(),
        listen=arguments.listen,
        token=token,
        concurrency=arguments.concurrency,
        refresh_interval=arguments.refresh_interval,
        is_prefix_glob=arguments.glob_prefix_only,
    )
    check_pool(pool, config)
    return PoolPlan(
        pool=pool,
        pid_file=environment.absolute(arguments.pidfile) if arguments.pidfile else None,
        config=config,
    )


def _lease(text: str) -> float:
    try:
        return parse_lease(text)
    except ValueError as error:
        raise UsageError(f"--lease {text} {error} — for example --lease 5m") from None


def _umask() -> int:
    """Return who may not read what the pool shows: those whom the process's umask leaves out."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _token(call: Call) -> str | None:
    if call.arguments.token_file is None:
        return None
    path = call.environment.absolute(call.arguments.token_file)
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise UsageError(f"the token file {path} cannot be read: {error}") from None
    if not token or "\n" in token:
        raise UsageError(f"the token file {path} must hold one line, which is not empty")
    return token


def _check_address(listen: str, token: str | None) -> None:
    try:
        is_loopback = ipaddress.ip_address(listen).is_loopback
    except ValueError:
        raise UsageError(
            f"--listen {listen} is no address — for example --listen 127.0.0.1"
        ) from None
    if not is_loopback and token is None:
        raise UsageError(
            f"--listen {listen} would let everybody on the network in — give a --token-file, too"
        )


# ---- the client -----------------------------------------------------------------------------


def _ask(call: Call, name: str, words: list[str]) -> int:
    least, most, usage, act = _CLIENTS[name]
    if not least <= len(words) <= most:
        raise UsageError(
            f"that is: cachefs pool {name} {usage} -p PORT (or -D HOMEDIR)".replace("  ", " ")
        )
    arguments = call.arguments
    home = None if arguments.home is None else call.environment.absolute(arguments.home)
    if home is None and arguments.port is None:
        raise UsageError(f"which pool? — cachefs pool {name} -p PORT, or -D HOMEDIR")
    by_port = arguments.port is not None
    with Pool(
        port=arguments.port if by_port else None,
        host=arguments.listen,
        home=None if by_port else home,
        token=_token(call) if by_port else None,
    ) as pool:
        act(call, pool, words)
    return EXIT_DONE


def _pull(call: Call, pool: Pool, words: list[str]) -> None:
    paths = [str(path) for path in pool.pull(words[0], *words[1:])]
    if call.as_json:
        say_json({"paths": paths})
    else:
        for path in paths:
            _print(path)


def _push(call: Call, pool: Pool, words: list[str]) -> None:
    bucket, key, path = words
    pool.push(bucket, key, call.environment.absolute(path))
    if call.as_json:
        say_json({"bucket": bucket, "key": key})


def _glob(call: Call, pool: Pool, words: list[str]) -> None:
    for key in pool.glob(*words):
        if call.as_json:
            say_json({"key": key})
        else:
            _print(key)


def _refresh(call: Call, pool: Pool, words: list[str]) -> None:
    pool.refresh(words[0])
    if call.as_json:
        say_json({"bucket": words[0]})


def _status(call: Call, pool: Pool, words: list[str]) -> None:
    told = pool.status()
    if call.as_json:
        say_json(told)
    else:
        for name, value in told.items():
            _print(f"{name} {value}".rstrip())


def _print(line: str) -> None:
    """Print a line as it is, whatever bytes are in it: scripts go on with it."""
    os.write(1, os.fsencode(line) + b"\n")


_Act = Callable[[Call, Pool, list[str]], None]
_CLIENTS: Final[dict[str, tuple[int, int, str, _Act]]] = {
    "pull": (2, 10_000, "BUCKET KEY…", _pull),
    "push": (3, 3, "BUCKET KEY FILE", _push),
    "glob": (2, 2, "BUCKET PATTERN", _glob),
    "refresh": (1, 1, "BUCKET", _refresh),
    "status": (0, 0, "", _status),
}


COMMAND = Command(_configure, _run, option_groups=_GROUPS)
