"""``cachefs mount``: check, start the daemon, return when the mount answers. Or be the daemon."""

import argparse
import contextlib
import logging
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cachefs.cli.checks import check_all
from cachefs.cli.command import Call, Command
from cachefs.cli.daemon import OWN_LOG_NAME, Announcer, launch, redirect_to
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES, EXIT_WAITING, Failure, explain
from cachefs.cli.logs import log_of_daemon
from cachefs.cli.output import complain, counted, named
from cachefs.cli.parser import Parser, show_mount_options
from cachefs.config import MountConfig, mount_config, read_config_file
from cachefs.config.option import Group
from cachefs.mounts import mount_at
from cachefs.preparing import make_cache_dir
from cachefs.remote.retry import Retrying

_log = logging.getLogger(__name__)

_DESCRIPTION = """\
Mounts SOURCE at the empty directory MOUNTPOINT, and returns when the mount answers.

SOURCE is one of
  s3://BUCKET[/PREFIX]         a bucket, or what lies below a prefix of it; s3:// is every bucket
  swift://CONTAINER[/PREFIX]   the same on OpenStack Swift; swift:// is every container
  file:///DIRECTORY            a directory of this machine as an object store
  REMOTE:[BUCKET[/PREFIX]]     by way of [remotes.REMOTE] of the configuration file
  NAME                         what [mounts.NAME] of the configuration file says

Credentials come from where the SDKs look for them: AWS_* variables, ~/.aws and so on for S3; OS_* or ST_*
variables or clouds.yaml for Swift. An option beats the environment variable CACHEFS_OPTION, which beats the file.
"""


def _configure(parser: Parser) -> None:
    parser.usage = "cachefs mount SOURCE MOUNTPOINT [options]\n       cachefs mount NAME [MOUNTPOINT] [options]"
    parser.description = _DESCRIPTION
    parser.add_argument("source", metavar="SOURCE", help="what to mount")
    parser.add_argument(
        "mountpoint", metavar="MOUNTPOINT", nargs="?", help="where: an empty directory"
    )
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    show_mount_options(parser, tuple(Group))


def _run(call: Call) -> int:
    arguments, environment = call.arguments, call.environment
    config = mount_config(
        arguments.source,
        arguments.mountpoint,
        call.given.settings,
        file=read_config_file(environment),
        environment=environment,
        kernel_options=call.given.kernel_options,
    )
    doing = f"cannot mount {config.source}"
    announcer = Announcer(arguments.ready_fd) if arguments.ready_fd is not None else None
    try:
        mountpoint = check_all(config, environment)
    except Exception as error:  # noqa: BLE001 - said, not swallowed
        return _end(call, explain(error, doing=doing, source=config.source), announcer)
    if announcer or config.foreground or arguments.foreground:
        return _stay(call, config, mountpoint, announcer)
    log_file = config.log_file or config.cache_dir / OWN_LOG_NAME
    failure = launch(call.words, environment, log_file=log_file, doing=doing)
    if failure is None and mount_at(mountpoint) is None:
        failure = Failure(f"{doing}: it was unmounted at once", 1)
    return EXIT_DONE if failure is None else _end(call, failure, None)


def _stay(call: Call, config: MountConfig, mountpoint: Path, announcer: Announcer | None) -> int:
    """Be the mount until its end; return the exit code."""
    # Loaded here: an SDK takes longer than everything that was done so far.
    from cachefs.remote.open import open_store

    answered = False
    at = ""

    def on_ready() -> None:
        nonlocal answered
        answered = True
        if announcer:
            announcer.ready()

    os.umask(0o077)
    take_descriptors()
    try:
        store = open_store(
            config.source,
            config.store,
            timeout_s=config.timeout_s,
            environ=call.environment.variables,
        )
        at = whereabouts(store.description)
        store.check()  # before anything is created
        make_cache_dir(config.cache_dir, call.environment)
        _start_log(call, config, is_daemon=announcer is not None)
        left = _hold(call, config, mountpoint, store, on_ready)
    except BaseException as error:  # noqa: BLE001 - said, and logged where it is our defect
        doing = "the mount of {} ended" if answered else "cannot mount {}"
        failure = explain(error, doing=doing.format(config.source), source=config.source, at=at)
        if failure.unexpected:
            _log.error("%s", failure.line, exc_info=error)
        return _end(call, failure, announcer)
    return _farewell(call, config, left)


def take_descriptors() -> None:
    """Have as many files open as we are allowed to, as servers do: each open file of the mount is one of ours."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _hold(
    call: Call,
    config: MountConfig,
    mountpoint: Path,
    store: Retrying,
    on_ready: Callable[[], None],
) -> Sequence[Mapping[str, object]]:
    """Serve until the end, and return the files that still wait for upload."""
    import trio

    from cachefs.cli.serve import Daemon

    def leave(left: Sequence[Mapping[str, object]] | None) -> None:
        code = EXIT_FAILURES
        try:
            if left is None:
                failure = explain(KeyboardInterrupt(), doing=f"cannot mount {config.source}")
                code = _end(call, failure, None)
            else:
                code = _farewell(call, config, left)
            logging.shutdown()
        finally:
            os._exit(code)

    os.chdir("/")
    daemon = Daemon(config, mountpoint, call.environment, store, on_ready, leave)
    return trio.run(daemon.run)


def _farewell(call: Call, config: MountConfig, left: Sequence[Mapping[str, object]]) -> int:
    if not left:
        _log.info("unmounted %s", config.source)
        return EXIT_DONE
    lists = f"cachefs recover list --cache-dir {config.cache_dir}"
    states = {file.get("state") for file in left}
    if "open" in states:
        advice = f"{lists} keeps what was being written; the next mount uploads the rest"
    elif "parked" in states:
        advice = f"{lists} tells why, cachefs recover upload tries again"
    else:
        advice = f"the next mount uploads what waits; {lists} tells what does"
    verb = "waits" if len(left) == 1 else "wait"
    line = (
        f"{config.source} is unmounted, but {counted(len(left), 'file')} still {verb} for upload: "
        f"{named(left)} — {advice}"
    )
    return _end(call, Failure(line, EXIT_WAITING), None)


def _end(call: Call, failure: Failure, announcer: Announcer | None) -> int:
    line = call.redactor(failure.line)
    if announcer:
        announcer.failed(Failure(line, failure.code))
    complain(line)
    return failure.code


def _start_log(call: Call, config: MountConfig, *, is_daemon: bool) -> None:
    own_file = config.cache_dir / OWN_LOG_NAME if is_daemon else None
    log_of_daemon(
        call.redactor,
        config.log_format,
        file=config.log_file,
        own_file=own_file,
        verbose=call.verbose,
    )
    if is_daemon and (file := config.log_file or own_file):
        redirect_to(file)


def whereabouts(description: str) -> str:
    """Return `` at URL`` of a store's description ``s3://photos at URL``."""
    _, at, where = description.rpartition(" at ")
    return f" at {where}" if at else ""


COMMAND = Command(_configure, _run, option_groups=tuple(Group))
