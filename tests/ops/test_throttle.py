"""A limit of bytes a second."""

import threading

from cachefs.ops.throttle import Throttle


def test_a_second_s_worth_goes_at_once_and_the_rest_has_to_wait() -> None:
    throttle = Throttle(1000, clock=lambda: 50.0)
    assert throttle._booked(1000) <= 0
    assert throttle._booked(500) == 0.5
    assert throttle._booked(500) == 1.0


def test_what_was_not_used_is_not_saved_up_for_longer_than_a_second() -> None:
    now = 50.0
    throttle = Throttle(1000, clock=lambda: now)
    now = 1000.0
    assert throttle._booked(2000) == 1.0


def test_without_a_limit_nobody_waits() -> None:
    assert Throttle(None)._booked(1 << 60) == 0


def test_who_waits_is_let_through_when_the_job_ends() -> None:
    throttle = Throttle(1)
    throttle.take(1)
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        throttle.take(1 << 30)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    begun.wait()
    throttle.end()
    waiter.join(30)
    assert not waiter.is_alive()
