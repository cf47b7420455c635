"""Which paths a job is about: patterns as in ``.gitignore``, which everybody has written before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cachefs.core.errors import UsageError

Match = Callable[[str], bool]
"""Says whether a path matches one of some patterns."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The paths that match *include* (None: all do) and not *exclude* (None: none does)."""

    include: Match | None
    exclude: Match | None

    @property
    def takes_all(self) -> bool:
        """Whether nothing is left out."""
        return self.include is None and self.exclude is None

    def __contains__(self, path: str) -> bool:
        """Whether the job is about *path*, relative to its root, without a slash in front."""
        if self.include is not None and not self.include(path):
            return False
        return self.exclude is None or not self.exclude(path)

    def may_hold(self, directory: str) -> bool:
        """Whether anything below *directory*, which has a slash behind, may be what the job is about.

        Nothing is below a directory that is excluded, as in ``.gitignore``.
        """
        return self.exclude is None or not self.exclude(directory)

    def takes(self, path: str) -> bool:
        """Whether the job is about *path* although nobody has walked down to it: no directory above it is excluded."""
        if path not in self:
            return False
        parts = path.removesuffix("/").split("/")[:-1]
        return all(
            self.may_hold("/".join(parts[:depth]) + "/") for depth in range(1, len(parts) + 1)
        )


def chosen(include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Chosen:
    """Return the paths that the patterns of ``--include`` and ``--exclude`` leave.

    Raise ``UsageError`` for what is no pattern.
    """
    return Chosen(_match("--include", include), _match("--exclude", exclude))


def _match(option: str, patterns: Sequence[str]) -> Match | None:
    if not patterns:
        return None
    from pathspec import GitIgnoreSpec  # a sixth of the start of a command that needs none

    for pattern in patterns:
        try:
            GitIgnoreSpec.from_lines([pattern])
        except ValueError as error:
            raise UsageError(
                f"{option} {pattern!r} is no pattern as in .gitignore ({error}) — write for example '*.jpg'"
            ) from None
    spec = GitIgnoreSpec.from_lines(patterns)
    return spec.match_file if spec.patterns else None
