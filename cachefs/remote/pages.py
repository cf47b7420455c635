"""Listings page by page, which can be asked again for the page that failed."""

from collections.abc import Callable, Iterator
from typing import Final

from cachefs.core.errors import Fault
from cachefs.core.types import Listing

_MOST_EMPTY: Final = 100
"""Pages without a name, one after the other. A store may give some: where it skips what was deleted, say."""


class Pages(Iterator[Listing]):
    """The pages of one listing, fetched as they are asked for.

    Unlike a generator it outlives a ``StoreError``: the ``next()`` after one asks for the same page again,
    so a fault in the seventh page costs one request and not seven. A store that answers with a page or a
    token that it gave before, or with empty pages for ever, makes a ``Fault``, never an endless or a doubled
    listing.

    *fetch* gets the token of a page (None: the first) and returns the page and the token of the one after
    it (None: there is none).
    """

    def __init__(self, fetch: Callable[[str | None], tuple[Listing, str | None]]) -> None:
        self._fetch = fetch
        self._token: str | None = None
        self._tokens: set[str] = set()
        self._seen: set[int] = set()
        """What stands for each page so far; of a thousand names one number."""
        self._empty = 0
        self._done = False

    @property
    def done(self) -> bool:
        """Whether the last page was handed out."""
        return self._done

    @property
    def knows_end(self) -> bool:
        """Whether :attr:`done` tells so as soon as it was: elsewhere only asking for one more does."""
        return True

    def __next__(self) -> Listing:
        if self._done:
            raise StopIteration
        page, token = self._fetch(self._token)
        if token is not None and token in self._tokens:
            raise Fault("the store repeats itself in the listing (the same continuation token)")
        self._note(page)
        if token is None:
            self._done = True
        else:
            self._tokens.add(token)
            self._token = token
        return page

    def _note(self, page: Listing) -> None:
        """Raise ``Fault`` if the listing does not go on with *page*."""
        if page == Listing():
            self._empty += 1
            if self._empty > _MOST_EMPTY:
                raise Fault("the store goes on listing, and lists nothing")
            return
        self._empty = 0
        mark = hash((tuple(info.key for info in page.objects), page.prefixes))
        if mark in self._seen:
            raise Fault("the store repeats itself in the listing (the same page)")
        self._seen.add(mark)


def mapped(pages: Iterator[Listing], change: Callable[[Listing], Listing]) -> Iterator[Listing]:
    """Return the same pages, each changed by *change*, and as enduring as they were."""
    return _Mapped(pages, change) if isinstance(pages, Pages) else map(change, pages)


class _Mapped(Pages):
    def __init__(self, pages: Pages, change: Callable[[Listing], Listing]) -> None:
        self._pages, self._change = pages, change

    @property
    def done(self) -> bool:
        return self._pages.done

    @property
    def knows_end(self) -> bool:
        return self._pages.knows_end

    def __next__(self) -> Listing:
        return self._change(next(self._pages))
