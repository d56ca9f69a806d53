"""Counts of events, so that one comparison tells whether any has happened since."""


class Counter:
    """Counts events of one kind."""

    count = 0


changes = Counter()  # of attributes and flags that a compiled function may depend on
lendings = Counter()  # of arrays that came from the user or were handed out
