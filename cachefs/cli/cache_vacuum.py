"""``cachefs cache vacuum``: gives back what is unused in the database, under a mount as well."""

from cachefs.cli.cache_databases import opened
from cachefs.cli.command import Call
from cachefs.cli.failures import EXIT_DONE
from cachefs.cli.output import human_size, say, say_json


def run(call: Call) -> int:
    """Do it, and tell what it has given back."""
    with opened(call) as db:
        is_silent = call.as_json or call.quiet
        if not is_silent and db.databases():
            say("Optimizing cache database...")
        done = db.vacuum()
    if call.as_json:
        say_json(
            [
                {
                    "path": str(each.path),
                    "before": each.before,
                    "after": each.after,
                    "saved": max(0, each.before - each.after),
                    "is_possible": each.is_possible,
                    "is_held": each.is_held,
                }
                for each in done
            ]
        )
    elif not is_silent:
        for each in done:
            if not each.is_possible:
                say(
                    f"  {each.path} was made by an older cachefs: only once its mount has ended can it be made smaller"
                )
                continue
            if each.is_held:
                say(
                    f"  {each.path} is read by a program without a pause: run this again once that has ended"
                )
            else:
                say(f"✓ Database optimized ({each.path})")
            say(f"  Before: {human_size(each.before)}")
            say(f"  After: {human_size(each.after)}")
            say(f"  Saved: {human_size(max(0, each.before - each.after))}")
    return EXIT_DONE
