"""Which paths a job is about: patterns as in ``.gitignore``, which everybody has written before."""

from collections.abc import Sequence
from dataclasses import dataclass

from pathspec import GitIgnoreSpec

from cachefs.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Chosen:
    """The paths that match one of *include* (empty: all do) and none of *exclude*."""

    include: GitIgnoreSpec
    exclude: GitIgnoreSpec
    takes_all: bool

    def __contains__(self, path: str) -> bool:
        """Whether the job is about *path*, relative to its root, without a slash in front."""
        if self.takes_all:
            return True
        if self.include.patterns and not self.include.match_file(path):
            return False
        return not self.exclude.match_file(path)

    def may_hold(self, directory: str) -> bool:
        """Whether anything below *directory*, which has a slash behind, may be what the job is about.

        Nothing is below a directory that is excluded, as in ``.gitignore``.
        """
        return self.takes_all or not self.exclude.match_file(directory)

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
    return Chosen(
        _spec("--include", include),
        _spec("--exclude", exclude),
        takes_all=not include and not exclude,
    )


def _spec(option: str, patterns: Sequence[str]) -> GitIgnoreSpec:
    for pattern in patterns:
        try:
            GitIgnoreSpec.from_lines([pattern])
        except ValueError as error:
            raise UsageError(
                f"{option} {pattern!r} is no pattern as in .gitignore ({error}) — write for example '*.jpg'"
            ) from None
    return GitIgnoreSpec.from_lines(patterns)
