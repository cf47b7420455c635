"""What a store holds below a prefix, in the same words as what a directory holds; asks no mount."""

import base64
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from tests.mount.oracle.allowed import LATEST_SET_NS
from tests.mount.oracle.sides import Content, Found, content_of
from tests.mount.stores import LiveStore

_BILLION: Final = 10**9
_FORMATS: Final = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "link": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
}


@dataclass(frozen=True, slots=True)
class Stored:
    """One object: its bytes, and its metadata as the store tells it."""

    content: bytes
    meta: Mapping[str, str]


def objects_below(store: LiveStore, prefix: str) -> dict[str, Stored]:
    """Every object below *prefix*, by the rest of its key; a marker's ends with a slash, the prefix's own is ''."""
    return {
        key.removeprefix(prefix): Stored(store.get(key), store.meta(key))
        for key in store.all_keys(prefix)
    }


# ---- against a directory


def differences(found: Mapping[str, Stored], tree: Mapping[str, Found]) -> str:
    """Say in what the objects differ from what *tree* has; empty: in nothing.

    A directory is there by its marker, or by anything below it. Metadata that an object does not have was never
    set: another client stored it.
    """
    wrong = []
    wanted = {name.removeprefix("/"): one for name, one in tree.items()}
    dirs = {name for name, one in wanted.items() if one.seen.kind == "dir"}
    for key in found:
        name = key.removesuffix("/")
        if name not in wanted or (key.endswith("/") or not key) != (name in dirs):
            wrong.append(f"{key!r} is in the store, and not in the directory")
    for name, one in wanted.items():
        if name in dirs:
            if not any(
                key == f"{name}/" or not name or key.startswith(f"{name}/") for key in found
            ):
                wrong.append(f"{name!r} has no marker, and nothing below it")
            its = found.get(f"{name}/" if name else "")
        else:
            its = found.get(name)
            if its is None:
                wrong.append(f"{name!r} is not in the store")
        if its is not None:
            wrong += [f"{name!r}: {said}" for said in _unlike(its, one)]
    return "\n".join(wrong)


def _unlike(stored: Stored, one: Found) -> Iterator[str]:
    yield from _unlike_bytes(content_of(stored.content), stored.content, one)
    if "mode" not in stored.meta:
        return
    seen, meta = one.seen, stored.meta
    said = {
        "mode": (int(meta["mode"]), _FORMATS[seen.kind] | seen.mode),
        "uid": (int(meta["uid"]), seen.uid),
        "gid": (int(meta["gid"]), seen.gid),
    }
    if seen.mtime_ns <= LATEST_SET_NS:
        said["mtime"] = (_time_ns(meta["mtime"]), seen.mtime_ns)
    if seen.atime_ns <= LATEST_SET_NS:
        said["atime"] = (_time_ns(meta["atime"]), seen.atime_ns)
    for name, (its, wanted) in said.items():
        if its != wanted:
            yield f"{name} {its} is stored, {wanted} is right"
    attributes = _attributes(meta)
    if attributes != dict(one.attributes):
        yield f"attributes {attributes} are stored, {dict(one.attributes)} is right"


def _unlike_bytes(content: Content, body: bytes, one: Found) -> Iterator[str]:
    if one.target is not None and body != os.fsencode(one.target):
        yield f"the target {body!r} is stored, {one.target!r} is right"
    if one.content is not None and content != one.content:
        yield f"{content} is stored, {one.content} is right"


def _time_ns(text: str) -> int:
    seconds, _, fraction = text.partition(".")
    return int(seconds) * _BILLION + int(fraction.ljust(9, "0"))


def _attributes(meta: Mapping[str, str]) -> dict[str, bytes]:
    """As s3fs keeps them: JSON of base64, escaped as in a URL."""
    kept = json.loads(unquote(meta.get("xattr", ""))) if meta.get("xattr") else {}
    return {name: base64.b64decode(value) for name, value in kept.items()}
