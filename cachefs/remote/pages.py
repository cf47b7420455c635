"""Listings page by page, which can be asked again for the page that failed."""

from collections.abc import Callable, Iterator

from cachefs.core.errors import Fault
from cachefs.core.types import Listing


class Pages(Iterator[Listing]):
    """The pages of one listing, fetched as they are asked for.

    Unlike a generator it outlives a ``StoreError``: the ``next()`` after one asks for the same page again,
    so a fault in the seventh page costs one request and not seven. A store that answers with a page or a
    token that it gave before makes a ``Fault``, never an endless or a doubled listing.

    *fetch* gets the token of a page (None: the first) and returns the page and the token of the one after
    it (None: there is none).
    """

    def __init__(self, fetch: Callable[[str | None], tuple[Listing, str | None]]) -> None:
        self._fetch = fetch
        self._token: str | None = None
        self._tokens: set[str] = set()
        self._before = Listing()
        self._done = False

    @property
    def done(self) -> bool:
        """Whether the last page was handed out."""
        return self._done

    def __next__(self) -> Listing:
        if self._done:
            raise StopIteration
        page, token = self._fetch(self._token)
        if token is not None and token in self._tokens:
            raise Fault("the store repeats itself in the listing (the same continuation token)")
        if page != Listing() and page == self._before:
            raise Fault("the store repeats itself in the listing (the same page)")
        self._before = page
        if token is None:
            self._done = True
        else:
            self._tokens.add(token)
            self._token = token
        return page


def mapped(pages: Iterator[Listing], change: Callable[[Listing], Listing]) -> Iterator[Listing]:
    """Return the same pages, each changed by *change*, and as enduring as they were."""
    return _Mapped(pages, change) if isinstance(pages, Pages) else map(change, pages)


class _Mapped(Pages):
    def __init__(self, pages: Pages, change: Callable[[Listing], Listing]) -> None:
        self._pages, self._change = pages, change

    @property
    def done(self) -> bool:
        return self._pages.done

    def __next__(self) -> Listing:
        return self._change(next(self._pages))
