"""Uploading what waits in a cache directory, without a mount."""

from collections.abc import Mapping

import trio

from cachefs.cli.checks import check_cache_dir
from cachefs.cli.serve import disk_size, settings_of
from cachefs.config import Environment, MountConfig
from cachefs.engine.service import open_service
from cachefs.remote.open import open_store


def upload_all(config: MountConfig, environment: Environment) -> Mapping[str, object]:
    """Open the service on the cache directory of *config*, upload everything, and return what it says of it."""
    check_cache_dir(config.cache_dir, environment)
    store = open_store(config.source, config.store, timeout_s=config.timeout_s)
    store.check()

    async def upload() -> Mapping[str, object]:
        async with open_service(
            settings_of(config, disk_size(config.cache_dir)), store
        ) as service:
            return await service.flush([], wait=True)

    return trio.run(upload)
