"""Files put in order on the disk."""

from hypothesis import given
from hypothesis import strategies as st

from cachefs.local.sorting import Ordered, Ordering

_PATHS = st.binary(min_size=1, max_size=30).map(
    lambda raw: raw.replace(b"\0", b"_").decode("utf-8", "surrogateescape")
)
_FILES = st.builds(
    Ordered,
    _PATHS,
    st.integers(-(2**63), 2**63 - 1),
    st.none() | st.integers(0, 2**40),
    st.none() | st.integers(0, 2**60),
)


@given(st.lists(_FILES, max_size=30))
def test_the_highest_rank_comes_first_and_equals_stay_in_their_order(files: list[Ordered]) -> None:
    with Ordering() as ordering:
        for file in files:
            ordering.add(file)

        assert list(ordering) == sorted(files, key=lambda file: -file.rank)
        assert ordering.totals() == (len(files), sum(file.size or 0 for file in files))
