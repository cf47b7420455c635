"""Cache directories, whoever holds them: a daemon behind its socket, or nobody."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, Protocol

from cachefs import known
from cachefs.cli.command import Call
from cachefs.client import ControlClient, ControlError, NoDaemon
from cachefs.config import ConfigFile, MountConfig, mount_config, read_config_file
from cachefs.config.settings import Setting
from cachefs.core.cached import CachedFile, CachedPieces, CacheUsage
from cachefs.core.errors import UsageError
from cachefs.core.eviction import Policy
from cachefs.core.heat import Presence
from cachefs.core.history import Accessed
from cachefs.core.source import StoreOptions
from cachefs.core.types import EntryId
from cachefs.known import DATABASE, SOCKET_NAME, configured, has_cache
from cachefs.live import every_mount
from cachefs.mounts import locate, mount_of
from cachefs.registry import Registration

_LONGEST_WAIT_S: Final = 7 * 86400.0
_LONGEST_EVICTION_S: Final = 300.0
"""Deleting large files takes some file systems seconds each."""

File = Mapping[str, object]
"""A file that waits: id, path, key, size, state, error."""


class Held(Protocol):
    """One cache directory."""

    def entries(self) -> Iterator[CachedFile]:
        """Yield every file in the cache."""
        ...

    def entry(self, identity: int) -> CachedPieces | None:
        """Return one of them as it is now, with the sums of its bytes; None: it is gone."""
        ...

    def presence(self, paths: Sequence[str]) -> Sequence[Presence]:
        """Return how much of each file is in the cache, as far as that is known without asking the store."""
        ...

    def history(self) -> Iterator[Accessed]:
        """Yield every file that programs have opened, as far as it is remembered."""
        ...

    def usage(self) -> CacheUsage:
        """Tell how full the cache is."""
        ...

    def evict(self, files: Sequence[tuple[EntryId, int]]) -> Sequence[int | str]:
        """Drop files, each named with its last use. Return for each the bytes that are free now, or why it stays."""
        ...

    def dirty(self) -> Sequence[File]:
        """Return the files that wait for upload."""
        ...

    def export(self, identity: int, target: Path) -> None:
        """Write the bytes of one to *target*, which must not exist."""
        ...

    def discard(self, identity: int) -> None:
        """Give up the changes of one."""
        ...


class Live:
    """A cache directory whose daemon lives: everything goes through its socket."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def entries(self) -> Iterator[CachedFile]:
        """Yield every file in the cache. What comes and goes meanwhile may be among them."""
        after = 0
        while page := self._page(after):
            yield from page
            after = page[-1].id

    def _page(self, after: int) -> list[CachedFile]:
        answer = self._client.ask("entries", after=after)
        try:
            return [CachedFile.from_json(row) for row in answer]  # type: ignore[attr-defined]
        except (KeyError, TypeError, ValueError):
            raise ControlError("the daemon's answer is not one") from None

    def entry(self, identity: int) -> CachedPieces | None:
        """Return one of them as it is now, with the sums of its bytes; None: it is gone."""
        answer = self._client.ask("entry", id=identity)
        if answer is None:
            return None
        try:
            return CachedPieces.from_json(answer)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError):
            raise ControlError("the daemon's answer is not one") from None

    def refetch(self, identity: int, etag: str) -> bool:
        """Have the daemon give up the clean bytes of one, if they are of that version. Return whether it has."""
        return (
            self._client.ask("refetch", id=identity, etag=etag, timeout_s=_LONGEST_WAIT_S) is True
        )

    def store_anew(self, identity: int, etag: str) -> bool:
        """Have the daemon queue the clean bytes of one, if they are of that version. Return whether it has."""
        answer = self._client.ask("store_anew", id=identity, etag=etag, timeout_s=_LONGEST_WAIT_S)
        return answer is True

    def presence(self, paths: Sequence[str]) -> Sequence[Presence]:
        """Return how much of each file is in the cache, as far as that is known without asking the store."""
        answer = self._client.ask("presence", paths=list(paths))
        try:
            return [Presence(size, int(cached)) for size, cached in answer]  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            raise ControlError("the daemon's answer is not one") from None

    def history(self) -> Iterator[Accessed]:
        """Yield every file that programs have opened, as far as it is remembered."""
        after: int | None = 0
        while after is not None:
            answer: Any = self._client.ask("history", after=after)
            try:
                files = [Accessed.from_json(row) for row in answer["files"]]
                after = None if answer["after"] is None else int(answer["after"])
            except (AttributeError, KeyError, TypeError, ValueError):
                raise ControlError("the daemon's answer is not one") from None
            yield from files

    def usage(self) -> CacheUsage:
        """Ask how full the cache is."""
        answer: Any = self._client.ask("status")
        try:
            cache = answer["cache"]
            return CacheUsage(int(cache["used"]), int(cache["limit"]), Policy(cache["policy"]))
        except (KeyError, TypeError, ValueError):
            raise ControlError("the daemon's answer is not one") from None

    def evict(self, files: Sequence[tuple[EntryId, int]]) -> Sequence[int | str]:
        """Have the daemon drop files that nobody needs."""
        answer = self._client.ask("prune", files=files, timeout_s=_LONGEST_EVICTION_S)
        if not isinstance(answer, list) or len(answer) != len(files):
            raise ControlError("the daemon's answer is not one")
        return answer

    def dirty(self) -> Sequence[File]:
        """Return the files that wait."""
        answer = self._client.ask("dirty")
        return answer if isinstance(answer, list) else []

    def export(self, identity: int, target: Path) -> None:
        """Have the daemon write the bytes of one to *target*."""
        self._client.ask("export", id=identity, target=str(target), timeout_s=_LONGEST_WAIT_S)

    def discard(self, identity: int) -> None:
        """Have the daemon give up the changes of one."""
        self._client.ask("discard", id=identity)

    def upload(self, identity: int) -> None:
        """Have the daemon store one."""
        self._client.ask("upload", id=identity, timeout_s=_LONGEST_WAIT_S)


@contextmanager
def opened(cache_dir: Path) -> Iterator[Held]:
    """Open a cache directory, through its daemon if one lives. Raise ``InUse`` if another process has it."""
    try:
        client = ControlClient(cache_dir / SOCKET_NAME)
    except NoDaemon:
        from cachefs.engine.recovery import open_cache

        with open_cache(cache_dir) as cache:
            yield cache
        return
    with client:
        yield Live(client)


def cache_dirs(call: Call) -> list[Path]:
    """Return the cache directories that are meant: the one that was named, or all that are known."""
    if call.arguments.of:
        return [_of_mount(call)]
    if (cache_dir := _given_dir(call)) is not None:
        if not has_cache(cache_dir):
            raise UsageError(
                f"there is no cache in {cache_dir} — name the directory that holds {DATABASE}"
            )
        return [cache_dir]
    return known.cache_dirs(read_config_file(call.environment), call.environment)


def one_cache_dir(call: Call) -> Path:
    """Return the one cache directory that is meant. Raise ``UsageError``, which names them, if there are several."""
    found = cache_dirs(call)
    if not found:
        raise UsageError("no cache directory is known — name a mount, or its --cache-dir")
    if len(found) > 1:
        running = {each.cache_dir for each in every_mount(call.environment)}
        mounted = [each for each in found if str(each) in running]
        if len(mounted) != 1:
            raise UsageError(
                f"there are {len(found)} cache directories: {', '.join(map(str, found))} — name a mount, or"
                " one of them by --cache-dir"
            )
        return mounted[0]
    return found[0]


def config_of(call: Call, cache_dir: Path, *, how: str) -> MountConfig:
    """Return the configuration of the mount on *cache_dir*, as it runs, as it was named, or as it is configured.

    Raise ``UsageError`` if nothing tells which store it caches, and that it can be named by *how*.
    """
    file = read_config_file(call.environment)
    for running in every_mount(call.environment):
        if running.cache_dir == str(cache_dir):
            return _config_of_running(call, running, file)
    if call.arguments.of:
        return mount_config(
            _configured_name(call, file),
            None,
            call.given.settings,
            file=file,
            environment=call.environment,
        )
    for name in file.mounts:
        config = configured(name, file, call.environment)
        if config.cache_dir == cache_dir:
            return config
    raise UsageError(f"which store {cache_dir} caches is not known — name the source by {how}")


def _config_of_running(call: Call, running: Registration, file: ConfigFile) -> MountConfig:
    """Return the configuration of a mount: the store as it reaches it, but for what was asked for otherwise."""

    def config(settings: tuple[Setting, ...]) -> MountConfig:
        return mount_config(
            running.source, None, settings, file=file, environment=call.environment
        )

    asked, plain = config(call.given.settings), config(())
    changed = {
        each.name: getattr(asked.store, each.name)
        for each in fields(StoreOptions)
        if getattr(asked.store, each.name) != getattr(plain.store, each.name)
    }
    names = {each.name for each in fields(StoreOptions)}
    told: dict[str, Any] = {name: each for name, each in running.store.items() if name in names}
    store = replace(StoreOptions(**told) if told else plain.store, **changed)
    return replace(asked, store=store, cache_dir=Path(running.cache_dir))


def _configured_name(call: Call, file: ConfigFile) -> str:
    """Return the name in the configuration of what was named, if that is a mountpoint."""
    named = str(call.arguments.of)
    places = {
        str(call.environment.absolute(section.mountpoint)): name
        for name, section in file.mounts.items()
        if section.mountpoint
    }
    return places.get(str(call.environment.absolute(named)), named)


def _given_dir(call: Call) -> Path | None:
    said = next((s.value for s in reversed(call.given.settings) if s.name == "cache-dir"), None)
    return call.environment.absolute(said) if said else None


def _of_mount(call: Call) -> Path:
    """Return the cache directory of what was named: a mount that runs, one that is configured, or a source.

    Raise ``UsageError`` where ``--cache-dir`` names another one than the mount that runs has.
    """
    named, given = str(call.arguments.of), _given_dir(call)
    place = locate(call.environment.absolute(named))
    all_running = every_mount(call.environment)
    running = next((each for each in all_running if each.mountpoint == str(place)), None)
    if running is not None:
        cache_dir = Path(running.cache_dir)
        if given is not None and locate(given) != locate(cache_dir):
            raise UsageError(
                f"--cache-dir {given} is not the cache of {named}, which is in {cache_dir} — name one of the two"
            )
        return cache_dir
    file = read_config_file(call.environment)
    target = _configured_name(call, file)
    if target not in file.mounts and ":" not in target:
        _require_outside(named, place)
    config = mount_config(
        target, None, call.given.settings, file=file, environment=call.environment
    )
    if given is None and not has_cache(config.cache_dir):
        serving = [each for each in all_running if _is_of(each, config)]
        if len(serving) == 1:
            return Path(serving[0].cache_dir)
    return config.cache_dir


def _require_outside(named: str, place: Path) -> None:
    """Raise ``UsageError``, which names the mount, if *place* lies in one: what is asked for is about all of it."""
    holding = mount_of(place)
    if holding is not None and holding.is_cachefs:
        raise UsageError(
            f"{named} lies in the mount {holding.mountpoint} — name that: this is about the whole of a cache"
        )


def _is_of(running: Registration, config: MountConfig) -> bool:
    """Whether a mount that runs shows the source of *config*, as far as it has told how it reaches the store."""
    is_there = running.store.get("endpoint_url") == config.store.endpoint_url
    return running.source == str(config.source) and is_there
