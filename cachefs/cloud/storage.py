"""Where the bytes of a cloud manager are on this machine: a directory of its own, or the cache of a mount (``shelf.py``)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from cachefs.core.errors import Stale
from cachefs.local.catalogue import Known
from cachefs.local.holdings import Holdings, Part, claimed

_CHUNK: Final = 2**20

Fill = Callable[[Part], None]
"""Brings the bytes of a file into a part, and verifies them; raises the error of a store if nobody has them."""


class Target(Protocol):
    """A remote, as far as ``sync_status`` tells of it."""

    name: str
    error: str | None


class Storage(Protocol):
    """Keeps files within a capacity. For any number of threads and processes."""

    @property
    def remote(self) -> Target | None:
        """The remote to which it uploads by itself what it takes in; None: there is none."""
        ...

    @property
    def capacity(self) -> int:
        """How many bytes it may have."""
        ...

    def used(self) -> int:
        """Return how many bytes of the capacity are taken."""
        ...

    def make_room(self, size: int) -> bool:
        """Remove uploaded files until *size* bytes are free. Return whether they are."""
        ...

    def has(self, digest: str) -> bool:
        """Whether the file is here, as far as can be told without reading it."""
        ...

    def verified(self, known: Known) -> bool:
        """Whether the file is here, with the bytes that it is named for."""
        ...

    def path(self, known: Known) -> Path | None:
        """Return where to read the verified bytes of a file; None: it is not here, or not with its bytes."""
        ...

    def is_stored(self, digest: str) -> bool:
        """Whether as many remotes have the file as must before it may be removed."""
        ...

    def may_have(self, known: Known) -> bool:
        """Whether :attr:`remote` may have the file although no copy there is noted: it uploads by itself."""
        ...

    def take_in(self, file: BinaryIO, known: Known) -> bool:
        """Keep the bytes of *file*, durably. Return whether there is room. Raise ``Stale`` if they are not those of the hash."""
        ...

    def fetch(self, known: Known, fill: Fill) -> Path | None:
        """Have a file here, and return where. None: there is no room for it."""
        ...

    def claimed(self, known: Known) -> AbstractContextManager[BinaryIO | None]:
        """Have a file that is here to oneself, to be sent; None: another has it, or it is gone."""
        ...

    def settle(self, known: Known) -> None:
        """Return when :attr:`remote` has a file that is here. Raise why it does not."""
        ...

    def close(self) -> None:
        """Let go of what programs were given."""
        ...

    def go_on_as_child(self) -> None:
        """Leave to the parent of a forked child what is the parent's."""
        ...


def copy_verified(file: BinaryIO, part: Part, known: Known) -> None:
    """Copy all of *file* into *part*. Raise ``Stale`` if that is not what the hash says: it was changed since it was hashed."""
    file.seek(0)
    while chunk := file.read(min(_CHUNK, part.left)):
        part.write(chunk)
    if part.hash() != known.hash or file.read(1):
        raise Stale(f"{known.name} was changed while it was read")


class OwnStorage:
    """A directory of the manager's own."""

    remote: Target | None = None

    def __init__(self, holdings: Holdings, timeout_s: float) -> None:
        self._holdings = holdings
        self._timeout_s = timeout_s
        self.capacity = holdings.capacity
        self.used = holdings.used
        self.make_room = holdings.make_room
        self.has = holdings.has
        self.is_stored = holdings.is_stored

    def verified(self, known: Known) -> bool:
        """Whether the file is here; read anew if anything has touched it since it was verified."""
        return self._holdings.verified(known.hash)

    def path(self, known: Known) -> Path | None:
        """Return the path, which is good until room is needed."""
        return self._holdings.path_of(known.hash) if self.verified(known) else None

    def may_have(self, known: Known) -> bool:
        """Say no: the directory has no remote of its own."""
        return False

    def take_in(self, file: BinaryIO, known: Known) -> bool:
        """Copy *file* into the directory, and verify the copy."""
        with self._holdings.entrance(known.hash, timeout_s=self._timeout_s) as entrance:
            if self.verified(known):
                return True  # another has brought it in meanwhile
            part = entrance.part(known.size)
            if part is None:
                return False
            copy_verified(file, part, known)
            self._holdings.keep(part, known)
        return True

    def fetch(self, known: Known, fill: Fill) -> Path | None:
        """Bring a file into the directory."""
        with self._holdings.entrance(known.hash, timeout_s=self._timeout_s) as entrance:
            if not self.verified(known):
                self._holdings.forget_lost(known.hash)
                part = entrance.part(known.size)
                if part is None:
                    return None
                fill(part)
                self._holdings.keep(part, known)
            return self._holdings.path_of(known.hash)

    def claimed(self, known: Known) -> AbstractContextManager[BinaryIO | None]:
        """Lock the file."""
        return claimed(self._holdings.path_of(known.hash))

    def settle(self, known: Known) -> None:
        """Do nothing: the directory has no remote of its own."""

    def close(self) -> None:
        """Do nothing: paths stay."""

    def go_on_as_child(self) -> None:
        """Do nothing: files are locked where they are used."""
