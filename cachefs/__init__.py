"""An object store mounted as a drive, with a write-back cache on the local disk.

What programs use of it: :class:`CloudManager`, files by their hash; :class:`MetadataDB`, the MD5s of objects, and what is
recorded of buckets.
"""

import importlib

__version__ = "0.1.0"

__all__ = ["CloudManager", "MetadataDB", "__version__"]

_ELSEWHERE = {"CloudManager": "cachefs.cloudmanager", "MetadataDB": "cachefs.metadata_db"}


def __getattr__(name: str) -> object:
    """Load what programs use when they ask for it, so that the command itself starts quickly."""
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
