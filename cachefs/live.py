"""Finding the mounts that run, and asking them."""

from pathlib import Path

from cachefs.config import Environment
from cachefs.core.errors import UsageError
from cachefs.mounts import locate, mount_of
from cachefs.registry import Registration, pools_of, registry_of


def every_mount(environment: Environment) -> list[Registration]:
    """Return the running mounts of this user."""
    return registry_of(environment).running()


def every_pool(environment: Environment) -> list[Registration]:
    """Return the running pools of this user that no mount keeps."""
    return pools_of(environment).running()


def mount_containing(path: str, environment: Environment) -> tuple[Registration, str]:
    """Return the running mount in which *path* lies, and *path* relative to its root (empty: the root)."""
    place = locate(environment.absolute(path))
    holding = mount_of(place)
    registry = registry_of(environment)
    # By its number, where its directory has been moved.
    running = (
        registry.serving(holding.device) or registry.at(holding.mountpoint) if holding else None
    )
    if holding is None or running is None:
        raise UsageError(f"{path} is in no running cachefs mount — cachefs status lists them")
    relative = place.relative_to(holding.mountpoint)
    return running, "" if relative == Path() else str(relative)
