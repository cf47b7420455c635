"""An object store mounted as a drive, with a write-back cache on the local disk.

What programs use of it: :func:`connect` and :func:`connect_async`, files in a cache; :class:`CloudManager`, files by
their hash; :class:`MetadataDB`, the MD5s of objects, and what is recorded of buckets.
"""

import importlib

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "CloudManager",
    "MetadataDB",
    "__version__",
    "connect",
    "connect_async",
]

_ELSEWHERE = {
    "AsyncClient": "cachefs.library_async",
    "Client": "cachefs.library",
    "CloudManager": "cachefs.cloudmanager",
    "MetadataDB": "cachefs.metadata_db",
    "connect": "cachefs.library",
    "connect_async": "cachefs.library_async",
}


def __getattr__(name: str) -> object:
    """Load what programs use when they ask for it, so that the command itself starts quickly."""
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
