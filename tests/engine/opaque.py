"""A store in memory whose ETags tell nothing of the content, as those of what was sent in parts."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.memory import MemoryStore


class Opaque(MemoryStore):
    """Names each content by something that is not its MD5."""

    def fingerprint(self, key: Key) -> Fingerprint:
        return replace(super().fingerprint(key), md5=None)

    def _store(
        self, key: Key, content: bytes, meta: Mapping[str, str], content_type: str | None
    ) -> ObjectInfo:
        info = super()._store(key, content, meta, content_type)
        text = f"{sorted(meta.items())}".encode() + content
        etag = ETag(f"{hashlib.md5(text, usedforsecurity=False).hexdigest()}-2")
        info = replace(info, etag=etag, is_md5=False)
        self._objects[key] = replace(self._objects[key], info=info)
        return info
