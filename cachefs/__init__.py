"""An object store mounted as a drive, with a write-back cache on the local disk.

:class:`MetadataDB` is what programs use of it: the MD5s of objects, and what is recorded of buckets.
"""

import importlib

__version__ = "0.1.0"

__all__ = ["MetadataDB", "__version__"]


def __getattr__(name: str) -> object:
    """Load what programs use when they ask for it, so that the command itself starts quickly."""
    if name == "MetadataDB":
        return importlib.import_module("cachefs.metadata_db").MetadataDB
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
