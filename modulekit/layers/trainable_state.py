"""`TrainableState`: an initial state that is learned."""

from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.overlay import concrete
from modulekit.core.variable import Variable
from modulekit.layers.rnn_core import RNNCore


class TrainableState(Module):
    """An initial state whose parts are variables; all sequences of a batch begin with the same: `state[n] = v`.

    Args:
      initial_values: any structure of arrays without a batch axis, `[...]`.
      mask: a structure like it, with True for each part that is trained; all are if None.
      name: the module's name.

    Attributes:
      template: the structure, with a variable `[1, ...]` for each array. Its name is the path in the structure, such as
        `hidden`, or `state` for a single array.

    Raises:
      ValueError: `mask` has another structure.

    Source: Sonnet 2, `snt.TrainableState`.

    >>> import modulekit as mk
    >>> state = mk.TrainableState((jnp.zeros([16]), jnp.zeros([4])))
    >>> [part.shape for part in state(batch_size=3)]
    [(3, 16), (3, 4)]
    """

    def __init__(self, initial_values: Any, mask: Any = None, name: str | None = None) -> None:
        super().__init__(name=name)
        leaves, tree = jax.tree.flatten_with_path(initial_values)
        flags, mask_tree = jax.tree.flatten(mask) if mask is not None else ([True] * len(leaves), tree)
        if str(mask_tree) != str(tree):
            raise ValueError(
                f"the mask of a TrainableState needs the structure of its initial values, {summarize(initial_values)}, got "
                f"{summarize(mask)}"
            )
        with concrete():
            parts = [
                Variable(jnp.expand_dims(value, 0), trainable, _name(path))
                for (path, value), trainable in zip(leaves, flags, strict=True)
            ]
        self.template = jax.tree.unflatten(tree, parts)

    @classmethod
    def for_core(cls, core: RNNCore, mask: Any = None, name: str | None = None) -> "TrainableState":
        """Returns a learned initial state for a core, which begins as the core's own.

        Args:
          core: the core; it need not have been called.
          mask: a structure like its state, with True for each part that is trained; all are if None.
          name: the new module's name.

        >>> import modulekit as mk
        >>> core = mk.LSTM(16)
        >>> state = mk.TrainableState.for_core(core, mask=mk.LSTMState(hidden=True, cell=False))
        >>> [variable.name for variable in state.trainable_variables]
        ['trainable_state/hidden']
        """
        with concrete():
            initial_values = jax.tree.map(lambda part: jnp.squeeze(part, axis=0), core.initial_state(1))
        return cls(initial_values, mask, name)

    def __call__(self, batch_size: int) -> Any:
        """Returns the state of a batch: the structure of the initial values, with arrays `[batch, ...]`.

        Args:
          batch_size: the number of sequences.
        """
        return jax.tree.map(lambda part: jnp.broadcast_to(part.value, (batch_size, *part.shape[1:])), self.template)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "state"
