"""What a Swift honours, found out on an object of our own: some only pretend."""

import secrets
from contextlib import suppress

from cachefs.core.errors import Changed, Denied, NotFound, Refused, StoreError, StoreFull
from cachefs.remote.store import Capabilities, Support, not_tried
from cachefs.remote.swift_session import Session, quoted_path

_NOTE_PUT = (
    "Swift replaces an object whatever the condition: the version is checked just before, just after and once "
    "more a while later, so that a write that was overtaken is noticed, at the latest then"
)
_NOTE_CREATE = (
    "two creations of one name at the same instant may both succeed; the earlier writer notices"
)
_NOTE_LARGE = "large objects keep their segments in the container {}_segments"


def probe(session: Session, container: str) -> Capabilities:
    """Return what the store does to conditions, and leave nothing behind."""
    try:
        return _found(session, container)
    except StoreFull as reason:
        return Capabilities(notes=(not_tried(reason),))


def _found(session: Session, container: str) -> Capabilities:
    name = f".cachefs-probe-{secrets.token_hex(8)}"
    path, copy = quoted_path(container, name), quoted_path(container, f"{name}-copy")

    def answer(method: str, path: str, **headers: str) -> Support:
        try:
            session.ask(
                method,
                path,
                "probing",
                headers={k.replace("_", "-"): v for k, v in headers.items()},
            )
        except (Changed, NotFound):
            return Support.ENFORCED
        except StoreFull:
            raise
        except Refused:
            return Support.REFUSED
        return Support.IGNORED

    try:
        session.ask("PUT", path, f"probing {container!r}")
    except NotFound:
        raise
    except Denied:
        return Capabilities(writable=False)
    try:
        create = answer("PUT", path, If_None_Match="*")
        put = answer("PUT", path, If_Match='"00000000000000000000000000000000"')
        copied = answer("PUT", copy, X_Copy_From=path)
        other = answer(
            "PUT", copy, X_Copy_From=path, If_Match='"00000000000000000000000000000000"'
        )
        delete = answer("DELETE", path, If_Match='"00000000000000000000000000000000"')
    finally:
        for left in (path, copy):
            with suppress(StoreError):
                session.ask("DELETE", left, "removing the probe")
    notes = [_NOTE_LARGE.format(container)]
    if put is not Support.ENFORCED:
        notes.append(_NOTE_PUT)
    notes.append(_NOTE_CREATE)
    return Capabilities(
        conditional_put=put,
        conditional_create=create,
        conditional_multipart=put,
        conditional_delete=delete,
        conditional_copy=other,
        copy=Support.ENFORCED if copied is Support.IGNORED else Support.REFUSED,
        writable=True,
        notes=tuple(notes),
    )
