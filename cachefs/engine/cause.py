"""Why something is done: the operation of a program, or the word of an operator, that it belongs to."""

from contextvars import ContextVar

_current: ContextVar[str] = ContextVar("cause", default="")


def current() -> str:
    """Return what the present task, or the thread that works for it, is for; empty: nobody has said.

    A task has that of who starts it.
    """
    return _current.get()


class because:
    """Does what the block does because of *cause*, unless (*if_unknown*) it has a cause already."""

    __slots__ = ("_cause", "_token")

    def __init__(self, cause: str, *, if_unknown: bool = False) -> None:
        self._cause = (current() or cause) if if_unknown else cause

    def __enter__(self) -> None:
        self._token = _current.set(self._cause)

    def __exit__(self, *raised: object) -> None:
        _current.reset(self._token)
