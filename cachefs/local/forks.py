"""What a process that was forked lets go of: descriptors that are its parent's alone."""

import os
import weakref
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_child(owner: T, let_go: Callable[[T], None]) -> None:
    """Have *let_go* done with *owner*, as long as that lives, in each child that this process forks."""
    reference = weakref.ref(owner)

    def act() -> None:
        found = reference()
        if found is not None:
            let_go(found)

    os.register_at_fork(after_in_child=act)
