"""Random trees of modules, for property tests: nested, with shared layers, tied weights, noise and written variables.

A tree is a list of layers in order. A word is a layer of that kind; a number is a module that came before, once more;
a list is a nested sequence; a dict is two branches that are added. All layers map `[batch, 4]` to `[batch, 4]`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from catalogue import Affine, Averaging, Noisy, Row
from hypothesis import strategies as st

import modulekit as mk

WIDTH = 4
INPUT = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)


class Tied(mk.Module):
    """A narrow layer and its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = mk.Linear(3)
        self.decode = self.encode.transpose()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decode(jnp.tanh(self.encode(x)))


class Dropped(mk.Module):
    """Dropout, always on."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = mk.Dropout(0.3)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(x, is_training=True)


class Shrinking(mk.Module):
    """Writes a variable that is trained, after each use."""

    @mk.once
    def _initialize(self, x: jax.Array) -> None:
        self.scale = mk.Variable(jnp.full([x.shape[-1]], 1.5, x.dtype), name="scale")

    def __call__(self, x: jax.Array) -> jax.Array:
        self._initialize(x)
        y = x * self.scale
        self.scale.assign(self.scale * 0.75)
        return y


class Added(mk.Module):
    """Two branches."""

    def __init__(self, parts: dict[str, Any]) -> None:
        super().__init__()
        self.parts = parts

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.parts["left"](x) + self.parts["right"](x)


LAYERS: dict[str, Callable[[], Any]] = {
    "linear": lambda: mk.Linear(WIDTH),
    "bare": lambda: mk.Linear(WIDTH, with_bias=False),
    "affine": lambda: Affine(WIDTH),
    "tanh": lambda: jnp.tanh,
    "tied": Tied,
    "dropped": Dropped,
    "noisy": lambda: mk.Sequential([Noisy(), mk.Linear(WIDTH)]),
    "averaging": lambda: mk.Sequential([Averaging(), mk.Linear(WIDTH)]),
    "shrinking": Shrinking,
}

_part = st.sampled_from([*LAYERS, "transposed", 0, 1, 2])
_parts = st.lists(_part, min_size=1, max_size=2)
_nested = st.lists(_part | _parts, min_size=2, max_size=3) | st.fixed_dictionaries({"left": _parts, "right": _parts})
trees = st.lists(_part | _nested, min_size=2, max_size=3)


def row_of(tree: list[Any]) -> Row:
    """Returns a row that makes modules from the tree, after a layer that always comes first."""
    return Row(repr(tree), lambda: _grown(["linear", *tree], []), (INPUT,))


def _grown(tree: Any, before: list[Any]) -> Any:
    if isinstance(tree, int):
        return before[tree % len(before)]
    if tree == "transposed":
        made = [module for module in before if isinstance(module, mk.Linear)][-1].transpose()
    elif isinstance(tree, str):
        made = LAYERS[tree]()
    elif isinstance(tree, dict):
        made = Added({side: _grown(part, before) for side, part in tree.items()})
    else:
        made = mk.Sequential([_grown(part, before) for part in tree])
    if isinstance(made, mk.Module):
        before.append(made)
    return made
