"""What the examples of an ensemble and of serial sharing have in common: two networks, a penalty, a table over seeds."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import modulekit as mk

RATE = 1e-3  # of both optimizers, at the start
_SQUARES = mk.regularizers.L2(0.005)


def networks(hidden: Sequence[int], shared: bool = False) -> list[mk.nets.MLP]:
    """Returns two classifiers of digits, or one of them twice."""
    first = mk.nets.MLP([*hidden, 10], name="first")
    return [first, first if shared else mk.nets.MLP([*hidden, 10], name="second")]


def optimizers(steps: int) -> list[mk.optimizers.Scheduled]:
    """Returns an optimizer for each of the two: Adam, whose rate falls along a cosine to 0 over so many updates."""
    rate = optax.cosine_decay_schedule(RATE, steps)
    return [mk.optimizers.Scheduled(mk.optimizers.Adam(RATE), learning_rate=rate) for _ in range(2)]


def penalty(network: mk.nets.MLP) -> jax.Array:
    """Returns 0.01 times half the sum of squares of the weights of the hidden layers."""
    return _SQUARES([layer.w for layer in network.layers[:-1]])


def print_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Prints a row of numbers for each seed, and below them the mean and the standard deviation over the seeds."""
    table = Table(title=title)
    columns = list(next(iter(rows.values())))
    for heading in ("", *columns):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in rows.items():
        table.add_row(name, *(_in_figures(row[column]) for column in columns))
    if len(rows) > 1:
        values = np.array([[row[column] for column in columns] for row in rows.values()])
        table.add_section()
        table.add_row("mean", *map(_in_figures, values.mean(axis=0)))
        table.add_row("spread", *map(_in_figures, values.std(axis=0, ddof=1)))
    Console().print(table)


def _in_figures(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
