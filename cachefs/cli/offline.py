"""The service on a cache directory without a mount, to upload what waits there."""

from collections.abc import Callable, Mapping, Sequence

import trio

from cachefs.cli.failures import Failure, explain
from cachefs.config import Environment, MountConfig
from cachefs.core.errors import CachefsError
from cachefs.engine.service import open_service
from cachefs.preparing import check_cache_dir, disk_size, settings_of
from cachefs.remote.open import open_store

File = Mapping[str, object]


def upload(
    config: MountConfig,
    environment: Environment,
    choose: Callable[[Sequence[File]], Sequence[File]],
) -> list[tuple[File, Failure | None]]:
    """Open the service on the cache directory of *config* and upload what *choose* takes of the waiting files.

    Returns each with why it did not work, if so.
    """
    check_cache_dir(config.cache_dir, environment)
    store = open_store(
        config.source,
        config.store,
        timeout_s=config.timeout_s,
        environ=environment.variables,
    )

    async def attempt() -> list[tuple[File, Failure | None]]:
        outcomes: list[tuple[File, Failure | None]] = []
        async with open_service(
            settings_of(config, disk_size(config.cache_dir)), store
        ) as service:
            for file in choose(service.dirty()):
                failure = None
                try:
                    await service.upload(int(str(file["id"])))
                except CachefsError as error:
                    # The service uploads by itself, too: what waits no longer was only faster than this.
                    if any(each["id"] == file["id"] for each in service.dirty()):
                        failure = explain(error, source=config.source)
                outcomes.append((file, failure))
        return outcomes

    return trio.run(attempt)
