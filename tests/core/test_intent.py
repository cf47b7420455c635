"""The life of a promise: what may happen to it, and that nothing else does."""

import itertools

import pytest

from cachefs.core.intent import MOVES, Event, State, move

ALLOWED = {
    # A program may write at any time, and bytes that are being written are not uploaded.
    (State.OPEN, Event.WRITE): State.OPEN,
    (State.QUEUED, Event.WRITE): State.OPEN,
    (State.UPLOADING, Event.WRITE): State.OPEN,
    (State.PARKED, Event.WRITE): State.OPEN,
    # The last close makes it complete; a parked one gets another chance.
    (State.OPEN, Event.SEAL): State.QUEUED,
    (State.QUEUED, Event.SEAL): State.QUEUED,
    (State.PARKED, Event.SEAL): State.QUEUED,
    # Only what is complete and waits is uploaded, so never twice at once.
    (State.QUEUED, Event.CLAIM): State.UPLOADING,
    (State.UPLOADING, Event.FAULT): State.QUEUED,
    (State.OPEN, Event.REFUSE): State.PARKED,
    (State.QUEUED, Event.REFUSE): State.PARKED,
    (State.UPLOADING, Event.REFUSE): State.PARKED,
    (State.PARKED, Event.RETRY): State.QUEUED,
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_a_promise_moves_as_the_table_says_or_not_at_all(state: State, event: Event) -> None:
    if (state, event) in ALLOWED:
        assert move(state, event) is ALLOWED[state, event]
    else:
        with pytest.raises(ValueError, match=f"{state} cannot {event}"):
            move(state, event)


def test_an_illegal_move_leaves_the_table_as_it_was() -> None:
    before = {state: dict(moves) for state, moves in MOVES.items()}
    for state, event in itertools.product(State, Event):
        if event not in MOVES[state]:
            with pytest.raises(ValueError, match="cannot"):
                move(state, event)
    assert before == MOVES


@pytest.mark.parametrize("state", State)
def test_from_every_state_an_upload_can_be_reached(state: State) -> None:
    reached = {state}
    while more := {after for at in reached for after in MOVES[at].values()} - reached:
        reached |= more
    assert State.UPLOADING in reached
