from cachefs.cloudmanager import CloudManager
from cachefs.library import Client, connect
from cachefs.library_async import AsyncClient, connect_async
from cachefs.metadata_db import MetadataDB

__version__: str

__all__ = [
    "AsyncClient",
    "Client",
    "CloudManager",
    "MetadataDB",
    "__version__",
    "connect",
    "connect_async",
]
