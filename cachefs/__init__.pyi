from cachefs.cloudmanager import CloudManager
from cachefs.metadata_db import MetadataDB

__version__: str

__all__ = ["CloudManager", "MetadataDB", "__version__"]
