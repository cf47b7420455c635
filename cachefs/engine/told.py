"""What the kernel takes the length of each file to be: it reads no further than that, and appends there."""

from typing import Final

from cachetools import LRUCache

from cachefs.core.errors import Stale
from cachefs.core.types import Ino

_REMEMBERED: Final = 65536


class Unaware(Stale):
    """The kernel does not know how long a file is that it opens. On this it looks the name up again."""

    def __init__(self, ino: Ino) -> None:
        super().__init__("the file has another length than the kernel takes it to have")
        self.ino = ino


class Told:
    """The lengths that the kernel was told, as far as it surely goes by them.

    An answer that is under way while the kernel is made to forget an inode's attributes it does not take: whatever it
    is told of that inode around then does not count, until it is known to ask anew.
    """

    def __init__(self) -> None:
        self._lengths: LRUCache[Ino, int] = LRUCache(_REMEMBERED)
        self._doubted: LRUCache[Ino, None] = LRUCache(_REMEMBERED)

    def tell(self, ino: Ino, length: int) -> None:
        """Note the length that the kernel was told, or has made itself by writing."""
        self._lengths[ino] = length

    def doubt(self, ino: Ino) -> None:
        """Note that the kernel is made to forget the attributes of an inode."""
        self._lengths.pop(ino, None)
        self._doubted[ino] = None

    def asks_anew(self, ino: Ino) -> None:
        """Note that the kernel is about to ask, and will go by the answer."""
        self._lengths.pop(ino, None)
        self._doubted.pop(ino, None)

    def of(self, ino: Ino) -> int | None:
        """Return the length that the kernel goes by; None: it is not known."""
        return None if ino in self._doubted else self._lengths.get(ino)
