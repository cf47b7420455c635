"""A whole Debian that boots with its own systemd, in a container of namespaces.

The root is made once and kept in the user's cache directory; each boot gets a copy. Nothing is typed into
the container: a unit inside runs a script as soon as the mounts of this machine are there, writes what it
finds to a shared directory, and turns the machine off.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
PACKAGES: Final = ("dbus", "fuse3", "python3", "systemd", "systemd-sysv")

SCRIPT_UNIT: Final = """\
[Unit]
After=remote-fs.target
[Service]
Type=oneshot
ExecStart=/bin/bash /script
ExecStopPost=systemctl --no-block poweroff
TimeoutStartSec=120
[Install]
WantedBy=multi-user.target
"""

SCRIPT_HEAD: Final = """\
set -u
trap 'journalctl -q -b >/results/journal 2>&1' EXIT
# say NAME COMMAND…: keeps what the command prints, and its exit status.
say() { local name=$1; shift; "$@" >"/results/$name" 2>&1; echo $? >"/results/$name.status"; }
# await COMMAND…: returns when it succeeds, or after 20 s.
# ask NAME: has the test do something outside, and returns when it is done.
ask() { touch "/results/$1.asked"; await test -e "/results/$1.done"; }
await() { for _ in $(seq 200); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; return 1; }
"""


def missing() -> str | None:
    """Say what a boot lacks here, or None."""
    if os.geteuid() != 0:
        return "booting a container needs root"
    programs = ("debootstrap", "systemd-nspawn", "systemctl")
    absent = [name for name in programs if not shutil.which(name)]
    return f"not installed: {', '.join(absent)}" if absent else None


def release() -> str:
    """This machine's release: the container then has the same libraries, and can run the same Python."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values["VERSION_CODENAME"].strip('"')


def base_root() -> Path:
    """The root that every boot starts from; made the first time, in about 45 s."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cachefs-tests"
    kind = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]
    base = cache / f"{release()}-{kind}"
    if base.is_dir():
        return base
    cache.mkdir(parents=True, exist_ok=True)
    growing = cache / f"{base.name}.{os.getpid()}"
    try:
        subprocess.run(
            [
                "debootstrap",
                "--variant=minbase",
                f"--include={','.join(PACKAGES)}",
                release(),
                growing,
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        growing.rename(base)
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    return base


@dataclass
class Machine:
    """One copy of the root, to be prepared, booted once, and looked at."""

    root: Path
    results: Path
    shared: dict[Path, str] = field(default_factory=dict)
    """Directories of this machine, and where they are in the container."""

    @classmethod
    def create(cls, directory: Path) -> "Machine":
        root, results = directory / "root", directory / "results"
        subprocess.run(["cp", "-a", "--reflink=auto", base_root(), root], check=True)
        results.mkdir()
        return cls(root, results, {results: "/results"})

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """Make a file in the container."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
        target.chmod(mode)

    def install(self) -> list[str]:
        """Put the command into the container, and return what must be bound for it.

        The code, the environment that runs these tests and its interpreter are the ones of this machine.
        """
        self.write(
            "/usr/local/bin/cachefs",
            f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m cachefs "$@"\n',
            0o755,
        )
        homes = {str(REPOSITORY), sys.prefix, sys.base_prefix}
        return [f"--bind-ro={home}" for home in sorted(homes) if not home.startswith("/usr")]

    def boot(
        self,
        script: str,
        *,
        enable: Sequence[str],
        asked: Mapping[str, Callable[[], None]],
        timeout_s: float = 180,
    ) -> None:
        """Boot with the units *enable* on, run *script* when remote-fs.target is reached, turn off.

        *asked*: what to do outside when the script asks for it.
        """
        self.write("/script", SCRIPT_HEAD + script)
        self.write("/etc/systemd/system/script.service", SCRIPT_UNIT)
        subprocess.run(
            ["systemctl", "-q", f"--root={self.root}", "enable", "script.service", *enable],
            check=True,
        )
        shared = [f"--bind={here}:{there}" for here, there in self.shared.items()]
        command = [
            *("systemd-nspawn", "--quiet", f"--directory={self.root}", "--bind=/dev/fuse"),
            *(f"--machine=cachefs-test-{os.getpid()}", "--register=no", "--keep-unit"),
            *(*self.install(), *shared, "--boot"),
        ]
        with (
            (self.results / "console").open("wb") as console,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
            ) as container,
        ):
            try:
                self._attend(container, asked, time.monotonic() + timeout_s)
            finally:
                container.kill()  # a container that was turned off has ended already

    def _attend(
        self,
        container: subprocess.Popen[bytes],
        asked: Mapping[str, Callable[[], None]],
        deadline: float,
    ) -> None:
        left = dict(asked)
        while container.poll() is None:
            assert time.monotonic() < deadline, "the container was not turned off in time"
            for name in [name for name in left if (self.results / f"{name}.asked").exists()]:
                left.pop(name)()
                (self.results / f"{name}.done").touch()
            with contextlib.suppress(subprocess.TimeoutExpired):
                container.wait(0.05)

    def said(self, name: str) -> str:
        """What the command of that name printed."""
        return (self.results / name).read_text(encoding="utf-8").strip()

    def status(self, name: str) -> int:
        """The exit status of the command of that name."""
        return int(self.said(f"{name}.status"))

    def properties(self, name: str) -> Mapping[str, str]:
        """What `systemctl show` printed under that name."""
        return dict(line.split("=", 1) for line in self.said(name).splitlines())
