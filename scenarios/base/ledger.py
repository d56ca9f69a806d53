"""The time ledger of a run: where its seconds went."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

ACCOUNTS = ("data", "stepping", "evaluating", "saving", "other")


class Ledger:
    """Seconds by account: waiting for data, stepping (compilation included), evaluating, saving, and all other.

    Args:
      earlier: the seconds of the run's earlier parts, which it goes on from.

    >>> ledger = Ledger({"stepping": 10.0})
    >>> with ledger.charge("stepping"):
    ...     pass
    >>> list(ledger.seconds()), 10 <= ledger.seconds()["stepping"] < 11
    (['data', 'stepping', 'evaluating', 'saving', 'other'], True)
    """

    def __init__(self, earlier: Mapping[str, float] | None = None) -> None:
        self._seconds = {account: float((earlier or {}).get(account, 0.0)) for account in ACCOUNTS}
        self._since = perf_counter()
        self._charged = 0.0

    @contextmanager
    def charge(self, account: str) -> Iterator[None]:
        """Charges the time of a block to an account; blocks do not nest."""
        began = perf_counter()
        try:
            yield
        finally:
            spent = perf_counter() - began
            self._seconds[account] += spent
            self._charged += spent

    def seconds(self) -> dict[str, float]:
        """Returns the seconds so far; what no block was charged for is other."""
        other = perf_counter() - self._since - self._charged
        return {**self._seconds, "other": self._seconds["other"] + other}
