"""``cachefs umount``: everything uploaded, then unmounted; or still mounted, and said why."""

import errno
import os
import select
from pathlib import Path

from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES, EXIT_WAITING
from cachefs.cli.mounts import Mount, answer_of, holders, locate, mount_at, unmount
from cachefs.cli.output import complain, counted, printable, say_json
from cachefs.cli.parser import Parser
from cachefs.cli.progress import uploads_shown
from cachefs.cli.registry import Registration, registry_of
from cachefs.client import ControlClient, NoDaemon
from cachefs.config.quantities import parse_patience
from cachefs.core.errors import UsageError

_END_PATIENCE_S = 30.0
_ANSWER_GRACE_S = 10.0
_MOST_NAMES = 3


def _configure(parser: Parser) -> None:
    parser.description = (
        "Uploads what waits, then unmounts. If something cannot be uploaded in time, the mount stays, takes\n"
        "writes again, and the exit code is 5. The mount of a dead daemon is taken out of the tree; what waited\n"
        "is uploaded by the next mount."
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="what to unmount")
    parser.add_argument(
        "--timeout", metavar="TIME", default="60s", help="how long to wait for uploads [60s]"
    )
    add_json(parser)


def _run(call: Call) -> int:
    timeout_s = _timeout(call.arguments.timeout)
    mountpoint = locate(call.environment.absolute(call.arguments.mountpoint))
    mount = mount_at(mountpoint)
    if mount is None:
        raise UsageError(
            f"{call.arguments.mountpoint} is not mounted — cachefs status lists what is"
        )
    registration = registry_of(call.environment).at(mountpoint)
    if registration is not None:
        return _by_daemon(call, registration, mountpoint, timeout_s)
    if not mount.is_cachefs:
        raise UsageError(f"{mountpoint} is no cachefs mount but {mount.kind} — use umount")
    return _without_daemon(call, mount)


def _timeout(text: str) -> float:
    try:
        return parse_patience(text)
    except ValueError as error:
        raise UsageError(f"--timeout {text} {error} — for example --timeout 60s") from None


def _by_daemon(call: Call, registration: Registration, mountpoint: Path, timeout_s: float) -> int:
    try:
        process = os.pidfd_open(registration.pid)
    except ProcessLookupError:
        mount = mount_at(mountpoint)
        return _without_daemon(call, mount) if mount else _report(call, mountpoint, [])
    try:
        # The connection stays open over the unmount: when it closes, the daemon takes writes again.
        with ControlClient(Path(registration.socket)) as client:
            with uploads_shown(Path(registration.socket), quiet=call.quiet):
                answer = client.ask(
                    "drain", timeout=timeout_s, timeout_s=timeout_s + _ANSWER_GRACE_S
                )
            left = answer["left"] if isinstance(answer, dict) else []
            if left:
                return _report(call, mountpoint, left)
            reason = unmount(mountpoint, as_root=call.environment.is_root)
            if reason is not None:
                return _busy(call, mountpoint, reason)
            client.wait_end(timeout_s=_END_PATIENCE_S)
        _wait_for_end(process)
    except NoDaemon:
        if (mount := mount_at(mountpoint)) is not None:
            return _without_daemon(call, mount)
    finally:
        os.close(process)
    return _report(call, mountpoint, [])


def _without_daemon(call: Call, mount: Mount) -> int:
    is_dead = answer_of(mount.mountpoint) == errno.ENOTCONN
    reason = unmount(mount.mountpoint, as_root=call.environment.is_root, lazily=is_dead)
    if reason is not None:
        return _busy(call, mount.mountpoint, reason)
    if is_dead and not call.quiet:
        complain(
            f"the daemon of {mount.mountpoint} was dead — the next mount uploads what waits; "
            "cachefs recover lists it"
        )
    return _report(call, mount.mountpoint, [])


def _report(call: Call, mountpoint: Path, left: list[dict[str, object]]) -> int:
    if call.as_json:
        say_json({"mountpoint": str(mountpoint), "unmounted": not left, "left": left})
    if not left:
        return EXIT_DONE
    names = [
        f"{file.get('path')} ({file.get('error') or file.get('state')})"
        for file in left[:_MOST_NAMES]
    ]
    more = f" and {len(left) - _MOST_NAMES} more" if len(left) > _MOST_NAMES else ""
    complain(
        printable(
            f"cannot unmount {mountpoint}: {counted(len(left), 'file')} could not be uploaded: "
            f"{', '.join(names)}{more} — it stays mounted; try again with a longer --timeout, "
            f"or see cachefs status {mountpoint}"
        )
    )
    return EXIT_WAITING


def _busy(call: Call, mountpoint: Path, reason: str) -> int:
    using = holders(mountpoint)
    why = f"it is in use by {', '.join(using)}" if using else reason
    if call.as_json:
        say_json({"mountpoint": str(mountpoint), "unmounted": False, "left": [], "holders": using})
    complain(
        f"cannot unmount {mountpoint}: {why}" + (" — end them, or wait for them" if using else "")
    )
    return EXIT_FAILURES


def _wait_for_end(process: int) -> None:
    """Return when the daemon has ended, so that the cache directory is free; it is past all uploads by now."""
    select.select([process], [], [], _END_PATIENCE_S)


COMMAND = Command(_configure, _run)
