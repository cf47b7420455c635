"""The operators' jobs: each a generator of typed events, which a door prints, counts or turns into JSON."""
