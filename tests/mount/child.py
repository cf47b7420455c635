"""The program in a process of its own that touches the mount, so that the tests never do.

It reads pickled calls from its standard input and writes pickled results to its standard output. What it
opens stays open between the calls.
"""

import os
import pickle
import sys


def main() -> None:
    """Answer calls until the input ends."""
    calls = sys.stdin.buffer
    # A stray print must not end up between two answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            function, args, kwargs = pickle.load(calls)
        except EOFError:
            return
        try:
            answer = (True, function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  (every error is the caller's to see)
            answer = (False, error)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
