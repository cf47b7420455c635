"""The databases that ``cachefs cache`` is about: of one cache directory, or all that are known."""

from collections.abc import Iterator
from contextlib import contextmanager

from cachefs.cli.caches import cache_dirs
from cachefs.cli.command import Call
from cachefs.cli.output import complain
from cachefs.config import read_config_file
from cachefs.core.errors import UsageError
from cachefs.known import Remotes, has_cache
from cachefs.metadata_db import MetadataDB


@contextmanager
def opened(call: Call) -> Iterator[MetadataDB]:
    """Open what is meant. What of all that is known cannot be used is complained of."""
    if call.arguments.remote is not None:
        Remotes(read_config_file(call.environment), call.environment).require(
            call.arguments.remote
        )
    named = call.arguments.of is not None or any(
        each.name == "cache-dir" for each in call.given.settings
    )
    if not named:
        with MetadataDB() as db:
            for cache_dir, why in db.unusable.items():
                complain(call.redactor(f"{cache_dir} is left out: {why}"))
            yield db
        return
    (cache_dir,) = cache_dirs(call)
    if not has_cache(cache_dir):
        raise UsageError(f"there is no cache in {cache_dir} — name a mount, or its --cache-dir")
    with MetadataDB(cache_dir) as db:
        yield db
