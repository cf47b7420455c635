"""What the service manager hears."""

import socket
from pathlib import Path

from cachefs.cli.notify import notify


def test_the_manager_hears_what_is_said(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)

        notify(str(tmp_path / "notify"), READY="1", STATUS="mounted")

        assert manager.recv(1024) == b"READY=1\nSTATUS=mounted"


def test_an_abstract_address_is_understood(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{tmp_path}")
        manager.settimeout(10)

        notify(f"@{tmp_path}", STOPPING="1")

        assert manager.recv(1024) == b"STOPPING=1"


def test_no_manager_is_no_problem(tmp_path: Path) -> None:
    notify(None, READY="1")
    notify(str(tmp_path / "none"), READY="1")
