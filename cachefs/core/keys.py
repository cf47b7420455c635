"""Object keys and the directory tree: which name shows which part of a key.

A key is split at ``/`` into *components*; each component has one *name* in its directory. Nearly always the two
are the same. Where a component cannot be a name, or where two things would claim one name, an escaped name
stands in; every escaped name holds ``~cachefs~``:

=====================================  ==========================================================
component                              name
=====================================  ==========================================================
empty (``a//b``, ``/a``)               ``~cachefs~empty``
``.``                                  ``~cachefs~dot``
``..``                                 ``~cachefs~dotdot``
object ``a`` where ``a/…`` also is     ``a~cachefs~object`` (the directory keeps ``a``)
holds a NUL byte or ``~cachefs~``      ``~cachefs~raw~`` and the component, ``%``, NUL and ``~`` as ``%XX``
longer than 255 bytes                  its first bytes, ``~cachefs~long~``, 32 digits of its SHA-256
=====================================  ==========================================================

All but the last can be undone from the name alone; the last is undone by the listing that showed it
(``getfattr -n user.cachefs.key`` tells the key of any file).
"""

import re
from hashlib import sha256

from cachefs.core.errors import InvalidName, NameTooLong
from cachefs.core.types import Key, Name

MARK = "~cachefs~"
NAME_MAX = 255
KEY_MAX = 1024
"""Bytes in a key, for S3 and Swift alike."""

_WORDS = {"": f"{MARK}empty", ".": f"{MARK}dot", "..": f"{MARK}dotdot"}
_WORDS_BACK = {name: component for component, name in _WORDS.items()}
_RAW = f"{MARK}raw~"
_LONG = f"{MARK}long~"
_OBJECT = f"{MARK}object"
_QUOTED = re.compile(r"%([0-9A-F]{2})")
_CONFLICT = re.compile(rb"\.conflict-[A-Za-z0-9.-]+-\d{8}T\d{6}Z(-\d+)?\Z")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def name_of(component: str, *, shadowed: bool = False) -> Name:
    """Return the name that shows *component* in its directory.

    *shadowed*: a directory of the same component lies beside this object.
    """
    shown = _WORDS.get(component, component)
    if shown is component and (MARK in component or "\0" in component):
        shown = _RAW + "".join(f"%{ord(c):02X}" if c in "%\0~" else c for c in component)
    if shadowed:
        shown += _OBJECT
    name = _bytes(shown)
    if len(name) <= NAME_MAX:
        return Name(name)
    # No component holds a slash, so no other component has the digest of a shadowed one.
    digest = sha256(_bytes(component) + (b"/object" if shadowed else b"")).hexdigest()[:32]
    tail = _bytes(_LONG + digest)
    head = _bytes(component.replace("\0", "").replace(MARK, ""))[: NAME_MAX - len(tail)]
    return Name(head.decode("utf-8", "ignore").encode() + tail)


def path_shown(key: Key) -> bytes:
    """Return the path of *key* as the tree shows it: no part of it leads anywhere else."""
    return b"/".join(name_of(component) for component in key.split("/"))


def component_of(name: Name) -> tuple[str, bool]:
    """Return the component that *name* shows, and whether it is a shadowed object's.

    Raise ``InvalidName`` for an escaped name that only a listing can undo, or that nothing has.
    """
    shown = bytes(name).decode("utf-8", "surrogateescape")
    shadowed = shown.endswith(_OBJECT)
    if shadowed:
        shown = shown[: -len(_OBJECT)]
    if MARK not in shown:
        component = shown
    elif shown in _WORDS_BACK:
        component = _WORDS_BACK[shown]
    elif shown.startswith(_RAW):
        component = _QUOTED.sub(lambda m: chr(int(m[1], 16)), shown[len(_RAW) :])
    else:
        component = shown
    if name_of(component, shadowed=shadowed) != name:
        raise InvalidName(f"the name {shown!r} is reserved: it holds {MARK!r}")
    return component, shadowed


def child_key(directory: Key, component: str, *, is_dir: bool = False) -> Key:
    """Return the key of *component* in *directory* (a prefix that is empty or ends in a slash).

    Raise ``NameTooLong`` if no store could hold it.
    """
    key = f"{directory}{component}/" if is_dir else f"{directory}{component}"
    if len(_bytes(key)) > KEY_MAX:
        raise NameTooLong(f"the key would be longer than {KEY_MAX} bytes")
    return Key(key)


def last_component(key: Key, directory: Key) -> str:
    """Return the component of *key*, an object or a prefix directly below *directory*."""
    return key[len(directory) :].removesuffix("/") if key != directory else ""


def conflict_name(name: Name, *, host: str, when: str, turn: int = 0) -> Name:
    """Return where a write that lost a race is kept: ``NAME.conflict-HOST-UTCTIME``.

    *turn* makes another name where that one is taken. The name is cut where it would be too long.
    """
    tail = _bytes(f".conflict-{host}-{when}" + (f"-{turn}" if turn else ""))
    head = bytes(name)[: NAME_MAX - len(tail)]
    return Name(
        head.decode("utf-8", "ignore").encode() + tail if len(head) < len(name) else head + tail
    )


def is_conflict_name(name: Name) -> bool:
    """Whether *name* is one that :func:`conflict_name` makes."""
    return _CONFLICT.search(bytes(name)) is not None
