from cachefs.metadata_db import MetadataDB

__version__: str

__all__ = ["MetadataDB", "__version__"]
