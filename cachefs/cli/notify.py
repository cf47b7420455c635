"""The other end of systemd's ``Type=notify``."""

import contextlib
import socket


def notify(address: str | None, **fields: str) -> None:
    """Tell the service manager at *address* (``$NOTIFY_SOCKET``), if there is one: ``READY="1"``.

    A manager that does not listen is none of the mount's business.
    """
    if not address:
        return
    message = "\n".join(f"{name}={value}" for name, value in fields.items())
    where = f"\0{address[1:]}" if address.startswith("@") else address
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_manager,
    ):
        to_manager.connect(where)
        to_manager.sendall(message.encode())
