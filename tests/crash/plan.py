"""The session that is recorded: steps that both the recorder and the judge can play."""

import random
from dataclasses import dataclass

NAMES = ("a", "b", "c", "d")
PUTTING = 1000
"""In sessions of this seed and higher ones, most files come whole."""


@dataclass(frozen=True)
class Step:
    """One operation of a program, acknowledged when it returns."""

    verb: str
    name: str
    other: str = ""
    offset: int = 0
    data: bytes = b""


Tree = dict[str, bytes]


def after(tree: Tree, step: Step) -> Tree:
    """Return what the names hold once *step* is done."""
    now = dict(tree)
    match step.verb:
        case "write" | "put":
            now[step.name] = step.data
        case "patch" if step.data:
            old = now[step.name].ljust(step.offset, b"\0")
            now[step.name] = old[: step.offset] + step.data + old[step.offset + len(step.data) :]
        case "truncate":
            now[step.name] = now[step.name][: step.offset].ljust(step.offset, b"\0")
        case "rename":
            now[step.other] = now.pop(step.name)
        case "unlink":
            del now[step.name]
    return now


def drawn(seed: int, length: int) -> list[Step]:
    """Return a session of *length* steps."""
    chance, tree, steps = random.Random(seed), Tree(), list[Step]()
    for number in range(length):
        verbs = ["write", "write"] if seed < PUTTING else ["put", "put", "put", "write"]
        if tree:
            verbs += ["patch", "patch", "truncate", "rename", "unlink", "fsync", "flush"]
        verb = chance.choice(verbs)
        name = chance.choice(NAMES if verb in ("write", "put") else sorted(tree))
        size = chance.choice((0, 1, 5000, 70_000))
        data = bytes([number % 251 + 1]) * size
        offset = chance.choice((0, 100, 4096, 60_000))
        other = chance.choice([each for each in NAMES if each != name])
        step = Step(verb, name, other, offset, data)
        steps.append(step)
        tree = after(tree, step)
    return steps
