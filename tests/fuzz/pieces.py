"""Good examples, cut up: what the fuzzing tests share."""

from hypothesis import strategies as st


def spliced(*valid: bytes) -> st.SearchStrategy[bytes]:
    """Good examples, cut up, with something else in between."""

    def splice(one: bytes, at: int, skip: int, noise: bytes) -> bytes:
        at %= len(one) + 1
        return one[:at] + noise + one[at + skip :]

    noise = st.one_of(
        st.binary(max_size=12),
        st.sampled_from(
            [b"9" * 5000, b"[" * 100_000, b'{"a":' * 50_000, b"-1", b"null", b"1e999"]
        ),
    )
    return st.builds(
        splice, st.sampled_from(valid), st.integers(0, 10_000), st.integers(0, 20), noise
    )
