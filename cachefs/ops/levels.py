"""How full is too full: what ``--threshold`` and ``--to`` of ``cachefs prune`` may say.

===============  ==================================================================
``90%``          of the cache's size
``40GiB``        bytes that the cache takes
``disk:90%``     of the cache's disk, whoever takes it; ``disk:400GiB`` likewise
``free:20GiB``   bytes that the cache's disk has free; ``free:10%`` likewise
===============  ==================================================================
"""

from dataclasses import dataclass
from enum import StrEnum

from cachefs.config.quantities import Space, parse_space
from cachefs.core.errors import UsageError


class Of(StrEnum):
    """What a level is measured by."""

    CACHE = "cache"
    DISK = "disk"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a cache and its disk are, in bytes."""

    used: int
    """By the cache."""
    limit: int | None
    """Most that the cache may take; None: nobody has said it yet."""
    disk_size: int
    disk_free: int


@dataclass(frozen=True, slots=True)
class Level:
    """One fill level."""

    text: str
    of: Of
    space: Space

    def excess(self, usage: Usage) -> int:
        """Return how many bytes are above the level; 0 if none. Raise ``UsageError`` where it cannot be known."""
        if self.of is Of.CACHE:
            return max(0, usage.used - self.space.of(self._size_of_cache(usage)))
        wanted = self.space.of(usage.disk_size)
        if self.of is Of.DISK:
            return max(0, usage.disk_size - usage.disk_free - wanted)
        return max(0, wanted - usage.disk_free)

    def is_above(self, other: "Level") -> bool:
        """Whether it is fuller than *other*, as far as the two are told in the same terms."""
        if self.of is not other.of:
            return False
        for mine, its in (
            (self.space.percent, other.space.percent),
            (self.space.size, other.space.size),
        ):
            if mine is not None and its is not None:
                return mine < its if self.of is Of.FREE else mine > its
        return False

    def _size_of_cache(self, usage: Usage) -> int:
        if self.space.size is not None:
            return 0  # which does not matter then
        if usage.limit is None:
            raise UsageError(
                f"{self.text} of how much is not known, for nothing was mounted with this cache directory since it"
                " was made or taken over — pass --cache-size, or say it in bytes"
            )
        return usage.limit


def parse_level(text: str, option: str) -> Level:
    """Return the level that *text* is. Raise ``UsageError`` that names *option*."""
    kind, colon, amount = text.rpartition(":")
    try:
        return Level(text, Of(kind) if colon else Of.CACHE, parse_space(amount))
    except ValueError:
        raise UsageError(
            f"{option} {text} is no fill level — write 90% or 40GiB of the cache, disk:90% of its disk, or free:20GiB"
        ) from None


def default_target(threshold: Level) -> Level:
    """Return where to stop unless ``--to`` says it: at 75 % of the cache, or at the threshold, if that is another kind."""
    percent = threshold.space.percent
    if threshold.of is Of.CACHE and percent is not None and percent > 75:
        return Level("75%", Of.CACHE, Space(percent=75.0))
    return threshold
