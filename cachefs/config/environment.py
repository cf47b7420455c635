"""The process's surroundings, read in one place: variables, user, home, directory.

Nothing else reads ``os.environ``. Everything downstream takes an :class:`Environment`, so a test says what the
surroundings are instead of changing them.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_SECRET = re.compile(
    r"SECRET|PASSWORD|PASSWD|TOKEN$|AUTH_TOKEN|^ST_KEY$|^AWSSSECKEYS$", re.IGNORECASE
)
_SHORTEST_SECRET = 6  # shorter values would blot out ordinary words


@dataclass(frozen=True, slots=True)
class Environment:
    """What surrounds this process, frozen at one moment."""

    variables: Mapping[str, str] = field(default_factory=dict)
    uid: int = 0
    gid: int = 0
    directory: Path = Path("/")
    """The current directory, against which relative paths are taken."""

    def get(self, name: str) -> str | None:
        """Return the variable *name*, or None if it is unset or empty."""
        return self.variables.get(name) or None

    @property
    def is_root(self) -> bool:
        """Whether this is the superuser, who mounts without help and keeps things below /var and /run."""
        return self.uid == 0

    @property
    def home(self) -> Path:
        """The user's home directory."""
        return Path(self.get("HOME") or os.path.expanduser(f"~{self.get('USER') or ''}"))

    @property
    def cache_root(self) -> Path:
        """Where the cache directories lie that nobody gave a place."""
        if self.is_root:
            return Path("/var/cache/cachefs")
        return self._xdg("XDG_CACHE_HOME", ".cache") / "cachefs"

    @property
    def state_root(self) -> Path:
        """Where jobs keep what they remember from one run to the next."""
        if self.is_root and not self.get("XDG_STATE_HOME"):
            return Path("/var/lib/cachefs")
        return self._xdg("XDG_STATE_HOME", ".local/state") / "cachefs"

    @property
    def runtime_dir(self) -> Path:
        """Where running mounts are registered."""
        if self.is_root:
            return Path("/run/cachefs")
        if given := self.get("XDG_RUNTIME_DIR"):
            return Path(given) / "cachefs"
        return Path(f"/tmp/cachefs-{self.uid}")

    @property
    def config_candidates(self) -> tuple[Path, ...]:
        """The configuration files to look for, first found wins."""
        if given := self.get("CACHEFS_CONFIG"):
            return (self.absolute(given),)
        return (self.config_dir / "config.toml", Path("/etc/cachefs/config.toml"))

    @property
    def config_dir(self) -> Path:
        """Where the user's own configuration lies."""
        return self._xdg("XDG_CONFIG_HOME", ".config") / "cachefs"

    def absolute(self, path: str) -> Path:
        """Return *path* made absolute, ``~`` expanded, ``..`` and ``.`` taken out by name only."""
        expanded = path
        if path == "~" or path.startswith("~/"):
            expanded = f"{self.home}{path[1:]}"
        return Path(os.path.normpath(self.directory / expanded))

    def secrets(self) -> tuple[str, ...]:
        """Return the values that must never be written anywhere, longest first."""
        found = {
            value
            for name, value in self.variables.items()
            if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET
        }
        return tuple(sorted(found, key=len, reverse=True))

    def child_variables(self, **extra: str) -> dict[str, str]:
        """Return the variables for a child process, with *extra* on top."""
        return {**self.variables, **extra}

    def _xdg(self, variable: str, fallback: str) -> Path:
        given = self.get(variable)
        # The XDG specification: a relative path is invalid and is ignored.
        if given and given.startswith("/"):
            return Path(given)
        return self.home / fallback


def current() -> Environment:
    """Return the surroundings of this process, now."""
    return Environment(
        variables=dict(os.environ),
        uid=os.geteuid(),
        gid=os.getegid(),
        directory=_current_directory(),
    )


def _current_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:  # it was removed under us; absolute paths still work
        return Path("/")
