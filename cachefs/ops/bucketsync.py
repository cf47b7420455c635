"""Bucket to bucket: what the target lacks is copied to it, and what the source no longer has is deleted from it.

First everything is compared, then copied, then deleted: a listing that fails half way changes nothing, and nothing is
deleted unless every copy succeeded.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final

from cachefs.core.errors import Changed, NotFound, StoreError, UsageError
from cachefs.core.types import Key, ObjectInfo
from cachefs.ops.events import Failed, Progress
from cachefs.ops.globs import Chosen
from cachefs.ops.merge import merged, objects
from cachefs.ops.parallel import ahead, in_parallel
from cachefs.ops.sync_copy import Copied, Copier, Vanished
from cachefs.ops.sync_plan import (
    UNSURE,
    Difference,
    Kind,
    Plan,
    Rule,
    by_time,
    duplicate,
    modified,
    new,
)
from cachefs.remote.store import ObjectStore

_TOLD_EVERY: Final = 1000
"""Keys between two events of progress while the listings are compared."""
_MOST_IN_A_ROW: Final = 64
"""Failures with nothing done in between, after which the rest would fail as well."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """A target that the source no longer has is gone."""

    key: Key
    size: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A duplicate was not deleted, for the source has the key again."""

    key: Key


@dataclass(frozen=True, slots=True)
class NothingDeleted:
    """The duplicates stay, because not everything could be copied."""

    files: int


Dating = Callable[[ObjectInfo], ObjectInfo]
_Pair = tuple[ObjectInfo, ObjectInfo]
Event = Progress | Copied | Vanished | Deleted | Kept | NothingDeleted | Failed
_Outcomes = Generator[Event | None, None, None]


def compared(
    source: ObjectStore,
    target: ObjectStore,
    plan: Plan,
    *,
    chosen: Chosen,
    rule: Rule,
    ask: Rule = by_time,
    threads: int = 1,
    date_source: Dating | None = None,
    date_target: Dating | None = None,
) -> Generator[Event, None, None]:
    """Take down in *plan* how the two sides differ, as far as *chosen* has the keys.

    Reads both listings once, side by side, their objects dated anew by *date_source* and *date_target*. Where *rule* is unsure, *ask* is called, some at a time, in threads. What
    the listings raise ends it: then the plan is no whole one.
    """

    def answered(pair: _Pair | Progress) -> tuple[_Pair, str | None] | Progress:
        return pair if isinstance(pair, Progress) else (pair, ask(*pair))

    pairs = merged(
        _listed(source, chosen, date_source),
        _listed(target, chosen, date_target),
        left_key=_key_of,
        right_key=_key_of,
    )
    with closing(in_parallel(answered, _unsure(pairs, plan, rule), threads=threads)) as answers:
        for answer in answers:
            if isinstance(answer, Progress):
                yield answer
            elif (reason := answer[1]) is not None:
                plan.add(modified(*answer[0], reason))


def _unsure(
    pairs: Iterable[tuple[ObjectInfo | None, ObjectInfo | None]], plan: Plan, rule: Rule
) -> Iterator[_Pair | Progress]:
    """Take down what *rule* is sure of, and yield the rest, and now and then how far that is."""
    for number, (here, there) in enumerate(pairs, 1):
        plan.listed += here is not None
        if here is None:
            assert there is not None
            plan.add(duplicate(there))
        elif there is None:
            plan.add(new(here))
        elif (reason := rule(here, there)) == UNSURE:
            yield here, there
        elif reason is not None:
            plan.add(modified(here, there, reason))
        if number % _TOLD_EVERY == 0:
            yield Progress(number)


def _listed(store: ObjectStore, chosen: Chosen, date: Dating | None) -> Iterator[ObjectInfo]:
    pages = ahead(store.list(Key(""), deep=True))
    found = (info for info in objects(pages) if info.key in chosen)
    return found if date is None else map(date, found)


def _key_of(info: ObjectInfo) -> Key:
    return info.key


def require_few(plan: Plan, most: int, *, is_meant: bool) -> None:
    """Raise ``UsageError`` if more than *most* objects would be deleted, or everything, because the source has nothing.

    *is_meant*: somebody has said that number, of this very run.
    """
    doomed = plan.files[Kind.DUPLICATE]
    if doomed and not plan.listed and not is_meant:
        raise UsageError(
            f"the source has nothing, and all that the target has ({doomed}) would be deleted: nothing was done — is it "
            f"the right one? --max-delete {doomed} says that it is",
            exit_code=1,
        )
    if doomed > most:
        raise UsageError(
            f"{doomed} objects would be deleted, and --max-delete allows {most}: nothing was done — look at "
            f"{Kind.DUPLICATE.value}, then raise --max-delete, or use copy, which deletes nothing",
            exit_code=1,
        )


def carried_out(
    plan: Plan,
    source: ObjectStore,
    target: ObjectStore,
    copier: Copier,
    *,
    stop: Callable[[], None],
    threads: int,
    deleting: bool,
) -> Generator[Event, None, None]:
    """Copy what is new and modified, then, if *deleting*, delete the duplicates.

    Where the caller leaves early, *stop* is called, so that what is under way ends soon.
    """
    failures = 0
    with closing(
        _counted(_copies(plan, copier, threads, stop), plan, Kind.NEW, Kind.MODIFIED)
    ) as copies:
        for event in copies:
            failures += isinstance(event, Failed)
            yield event
    if not deleting or not plan.files[Kind.DUPLICATE]:
        return
    if failures:
        yield NothingDeleted(plan.files[Kind.DUPLICATE])
        return
    yield from _counted(_deletions(plan, source, target, threads, stop), plan, Kind.DUPLICATE)


def sweep(target: ObjectStore, works: Iterable[tuple[Key, str]]) -> None:
    """End the large uploads and copies, among *works*, that no run goes on with any more."""
    for key, work in works:
        with suppress(StoreError):  # else the next run does
            target.abandon(key, work)


def _copies(plan: Plan, copier: Copier, threads: int, stop: Callable[[], None]) -> _Outcomes:
    return in_parallel(
        copier.copied,
        plan.differences(Kind.NEW, Kind.MODIFIED),
        threads=threads,
        stop=stop,
    )


def _deletions(
    plan: Plan,
    source: ObjectStore,
    target: ObjectStore,
    threads: int,
    stop: Callable[[], None],
) -> _Outcomes:
    def delete(doomed: Difference) -> Event:
        try:
            # The listing left it out. Only the store's own word on the key makes it gone.
            source.head(doomed.key)
        except NotFound:
            return _deleted(target, doomed)
        except StoreError as error:
            return Failed(doomed.key, error)
        return Kept(doomed.key)

    return in_parallel(delete, plan.differences(Kind.DUPLICATE), threads=threads, stop=stop)


def _deleted(target: ObjectStore, doomed: Difference) -> Event:
    try:
        target.delete(doomed.key, if_match=doomed.target)
    except NotFound:
        pass  # somebody was faster
    except Changed:
        return Failed(
            doomed.key,
            Changed(f"{doomed.key!r} was changed at the target meanwhile, and left as it is"),
        )
    except StoreError as error:
        return Failed(doomed.key, error)
    return Deleted(doomed.key, doomed.size)


def _counted(events: _Outcomes, plan: Plan, *kinds: Kind) -> Generator[Event, None, None]:
    """Yield *events*, each followed by how far that is. Raise the failure after which the rest would fail as well."""
    total_files = sum(plan.files[kind] for kind in kinds)
    total_bytes = sum(plan.bytes[kind] for kind in kinds)
    files = size = in_a_row = 0
    with closing(events):
        for event in events:
            if event is None:
                continue
            files += 1
            size += event.size if isinstance(event, Copied | Deleted) else 0
            in_a_row = in_a_row + 1 if isinstance(event, Failed) else 0
            yield event
            yield Progress(files, size, total_files, total_bytes)
            if isinstance(event, Failed) and in_a_row >= _MOST_IN_A_ROW:
                raise event.error
