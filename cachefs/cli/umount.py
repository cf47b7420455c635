"""``cachefs umount``: everything uploaded, then unmounted; or still mounted, and said why."""

import errno
import os
import select
from pathlib import Path

from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES, EXIT_WAITING
from cachefs.cli.output import complain, counted, named, printable, say_json
from cachefs.cli.parser import Parser
from cachefs.cli.progress import uploads_shown
from cachefs.client import ControlClient, NoDaemon
from cachefs.config.quantities import parse_patience
from cachefs.core.errors import UsageError
from cachefs.mounts import (
    Mount,
    answer_of,
    holders,
    locate,
    mount_at,
    mounted,
    mounts_of,
    unmount,
)
from cachefs.registry import Registration, Registry, registry_of

_END_PATIENCE_S = 30.0
_ANSWER_GRACE_S = 10.0


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
    registry = registry_of(call.environment)
    registration = registry.at(mountpoint)
    mount = mount_at(mountpoint)
    if mount is None:
        raise UsageError(
            f"{call.arguments.mountpoint} is not mounted — {_elsewhere(registry, registration)}"
        )
    if not mount.is_cachefs:
        raise UsageError(_not_ours(mount))
    registration = registry.serving(mount.device) or registration
    if registration is None:
        return _without_daemon(call, mount)
    return _by_daemon(call, registration, mount, timeout_s)


def _elsewhere(registry: Registry, registration: Registration | None) -> str:
    """Return where the mount is that was made here, for its directory may have been moved; or how to find out."""
    devices = registry.devices_of(registration) if registration else []
    moved = [mount for device in devices for mount in mounts_of(device) if mount.is_cachefs]
    if moved:
        where = printable(str(moved[0].mountpoint))
        return f"it has been moved to {where}: cachefs umount {where}"
    return "cachefs status lists what is"


def _not_ours(mount: Mount) -> str:
    """Return what to say of a file system of another kind: it may cover one of ours."""
    where = printable(str(mount.mountpoint))
    if any(each.is_cachefs and each.mountpoint == mount.mountpoint for each in mounted()):
        return (
            f"the cachefs mount at {where} is covered by another ({mount.kind}) — "
            f"unmount that first: umount {where}"
        )
    return f"{where} is no cachefs mount but {mount.kind} — use umount"


def _timeout(text: str) -> float:
    try:
        return parse_patience(text)
    except ValueError as error:
        raise UsageError(f"--timeout {text} {error} — for example --timeout 60s") from None


def _by_daemon(call: Call, registration: Registration, mount: Mount, timeout_s: float) -> int:
    mountpoint = mount.mountpoint
    try:
        process = os.pidfd_open(registration.pid)
    except ProcessLookupError:
        return _after_daemon(call, mountpoint)
    try:
        # The connection stays open over the unmount: when it closes, the daemon takes writes again.
        with ControlClient(Path(registration.socket)) as client:
            served = _served(client.ask("status"))
            with uploads_shown(Path(registration.socket), quiet=call.quiet):
                answer = client.ask(
                    "drain", timeout=timeout_s, timeout_s=timeout_s + _ANSWER_GRACE_S
                )
            left = answer["left"] if isinstance(answer, dict) else []
            if left:
                return _report(call, mountpoint, left)
            if (above := mount_at(mountpoint)) is not None and above.number != mount.number:
                raise UsageError(_not_ours(above))
            reason = unmount(mountpoint, as_root=call.environment.is_root)
            if reason is not None:
                return _busy(call, mount, reason)
            client.wait_end(timeout_s=_END_PATIENCE_S)
        _wait_for_end(process)
    except NoDaemon:
        return _after_daemon(call, mountpoint)
    finally:
        os.close(process)
    if served and not call.quiet:
        complain("; ".join([f"{printable(str(mountpoint))} is unmounted", *served]))
    return _report(call, mountpoint, [])


def _served(status: object) -> list[str]:
    """Return what programs have of the mount beside its files, which the kernel does not know to be in use."""
    told = status if isinstance(status, dict) else {}
    clients, leases = told.get("pool", {}).get("clients"), told.get("leased", {}).get("leases")
    found = [f"{counted(clients, 'client')} of its pool had to go"] if clients else []
    if leases:
        found.append(
            f"{counted(leases, 'lease')} ended: what is open of those files can be read on"
        )
    return found


def _after_daemon(call: Call, mountpoint: Path) -> int:
    """Take away what a daemon has left that has just ended."""
    mount = mount_at(mountpoint)
    return _without_daemon(call, mount) if mount else _report(call, mountpoint, [])


def _without_daemon(call: Call, mount: Mount) -> int:
    is_dead = answer_of(mount.mountpoint) == errno.ENOTCONN
    reason = unmount(mount.mountpoint, as_root=call.environment.is_root, lazily=is_dead)
    if reason is not None:
        return _busy(call, mount, reason)
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
    complain(
        f"cannot unmount {printable(str(mountpoint))}: {counted(len(left), 'file')} could not be uploaded: "
        f"{named(left)} — it stays mounted; try again with a longer --timeout, "
        f"or see cachefs status {printable(str(mountpoint))}"
    )
    return EXIT_WAITING


def _busy(call: Call, mount: Mount, reason: str) -> int:
    mountpoint, using = mount.mountpoint, holders(mount)
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
