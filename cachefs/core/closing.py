"""What is closed at the end of a ``with`` block."""

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """Holds something of which :meth:`close` lets go."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it. May be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
