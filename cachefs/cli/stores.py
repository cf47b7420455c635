"""Opening the store that an operator names, for jobs that have no mount."""

from collections.abc import Iterator
from contextlib import contextmanager

from cachefs.cli.command import Call
from cachefs.config import MountConfig, mount_config, read_config_file
from cachefs.remote.open import open_store
from cachefs.remote.retry import Retrying


def store_config(call: Call, target: str) -> MountConfig:
    """Return what was said about the store *target*: a source, a remote's, or the name of a ``[mounts.NAME]``."""
    file = read_config_file(call.environment)
    return mount_config(target, None, call.given.settings, file=file, environment=call.environment)


@contextmanager
def opened_store(call: Call, config: MountConfig) -> Iterator[Retrying]:
    """Open the store of *config*, whose bucket must exist and let itself be listed, and close it in the end.

    Raise the ``StoreError`` that says why it cannot be used.
    """
    store = open_store(
        config.source,
        config.store,
        timeout_s=config.timeout_s,
        environ=call.environment.variables,
    )
    try:
        store.check()
        yield store
    finally:
        store.close()
