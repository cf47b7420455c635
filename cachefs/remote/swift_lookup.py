"""Finding the object of a key: a marker may have two names in Swift, and a file may have a marker's."""

import time
from dataclasses import dataclass

from cachefs.core.errors import Changed, NoBucket, NotFound
from cachefs.core.types import ETag, Key
from cachefs.remote.swift_session import Session, quoted_path
from cachefs.remote.swift_values import Version, require_bearable, stem_of, version_of

_CONTAINER_TRUSTED_S = 30.0


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen where a key may lie."""

    found: Version | None
    beside: Version | None = None
    """What else has the name: a file, for a marker; a marker, for a file."""


class Lookup:
    """The objects of one container, as they can be found."""

    def __init__(self, session: Session, container: str) -> None:
        self._session = session
        self._container = container
        self._seen_s = float("-inf")
        """When the container was last known to be there, on the monotonic clock."""

    def look(self, key: Key, *, newest: bool = False) -> Look:
        """Look where *key* may lie; *newest*: ask every replica, for the latest version counts."""
        require_bearable(key)
        stem = stem_of(key)
        if stem is None:
            version = self.head(key, key, newest=newest)
            if version and version.is_directory:
                return Look(None, version)
            return Look(version)
        beside = self.head(key, stem, newest=newest)
        if beside and beside.is_directory:
            return Look(beside)
        return Look(self.head(key, key, newest=newest), beside)

    def head(self, key: Key, name: str, *, newest: bool = False) -> Version | None:
        """Return what has the Swift name *name*; None if the store says that nothing has."""
        try:
            answer = self._session.ask(
                "HEAD",
                quoted_path(self._container, name),
                f"looking up {key!r}",
                headers={"X-Newest": "true"} if newest else {},
            )
        except NotFound:
            self.confirm_container()
            return None
        self._seen_s = time.monotonic()
        return version_of(key, name, answer.headers)

    def confirm_container(self) -> None:
        """Raise ``NoBucket`` if what is not there is the container: its objects are not known to be gone."""
        if time.monotonic() - self._seen_s < _CONTAINER_TRUSTED_S:
            return
        try:
            self._session.ask(
                "HEAD", quoted_path(self._container), f"looking for {self._container!r}"
            )
        except NotFound:
            raise NoBucket(f"there is no container {self._container!r}") from None
        self._seen_s = time.monotonic()


def existing(key: Key, version: Version | None) -> Version:
    """Return *version*. Raise ``NotFound`` if there is none."""
    if version is None:
        raise NotFound(f"{key!r} is not there")
    return version


def require(key: Key, version: Version | None, etag: ETag | None) -> None:
    """Raise ``Changed`` unless *version* is the one that *etag* names (None: there must be none)."""
    if (version.info.etag if version else None) != etag:
        raise Changed(
            f"{key!r} is another version" if version else f"{key!r} is not there any more"
        )


def name_for(key: Key, look: Look, *, is_directory: bool) -> str:
    """Return the Swift name to store *key* under."""
    stem = stem_of(key)
    if stem is None or not is_directory or look.beside:
        return key
    return stem if look.found is None or look.found.name == stem else key
