"""An object store mounted as a drive, with a write-back cache on the local disk."""

__version__ = "0.1.0"

__all__ = ["__version__"]
