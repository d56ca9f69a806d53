"""`DeepRNN`: cores on top of each other, as one core; also with skip and residual connections."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.layers.inputs import location
from modulekit.layers.recurrent_inputs import form_of
from modulekit.layers.rnn_core import RNNCore

Layer = Callable[..., Any]
States = tuple[Any, ...]


class DeepRNN(RNNCore):
    """Calls layers in order, each with the output of the one before: `y_k = layer_k(y_{k-1})`, where `y_0 = x`.

    Those that are cores are stepped: the state is a tuple with the state of each core, in their order; empty if none is.

    Args:
      layers: cores, other modules, or functions of one argument.
      name: the module's name.

    Source: Sonnet 2, `snt.DeepRNN`.

    >>> import modulekit as mk
    >>> core = mk.DeepRNN([mk.LSTM(16), jnp.tanh, mk.GRU(8)])
    >>> outputs, state = core(jnp.ones([3, 5]), core.initial_state(3))
    >>> outputs.shape, len(state)
    ((3, 8), 2)
    """

    def __init__(self, layers: Iterable[Layer] | None, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layers: list[Layer] = list(layers) if layers is not None else []
        for index, layer in enumerate(self.layers):
            if not callable(layer):
                raise TypeError(f"layers[{index}] of DeepRNN is {layer!r}: expected a core, a module or a function")

    def __call__(self, inputs: Any, prev_state: States) -> tuple[Any, States]:
        """Returns the last layer's outputs, and the states of all cores after the step.

        Args:
          inputs: what the first layer takes, `[batch, ...]`.
          prev_state: a tuple with the state of each core.

        Raises:
          ValueError: the number of states is not that of the cores.
        """
        outputs = inputs
        states = iter(checked_states(self, self.layers, prev_state))
        next_states = []
        for layer in self.layers:
            if isinstance(layer, RNNCore):
                outputs, state = layer(outputs, next(states))
                next_states.append(state)
            else:
                outputs = layer(outputs)
        return outputs, tuple(next_states)

    def initial_state(self, batch_size: int, **kwargs: Any) -> States:
        """Returns a tuple with the initial state of each core; keyword arguments go to all of them.

        Args:
          batch_size: the number of sequences.
          **kwargs: of the cores' `initial_state`.
        """
        return initial_states(self.layers, batch_size, kwargs)


class SkipRNN(RNNCore):
    """Cores in order, where each but the first also sees the inputs: `y_k = core_k([x, y_{k-1}])`, `y_1 = core_1(x)`.

    Args:
      layers: the cores.
      concat_final_output: whether the output is `[y_1, ..., y_n]` instead of `y_n`.
      name: the module's name.
    """

    def __init__(self, layers: Sequence[RNNCore], concat_final_output: bool = True, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layers = list(layers)
        self.concat_final_output = concat_final_output

    def __call__(self, inputs: Any, prev_state: States) -> tuple[Any, States]:
        """Returns the outputs, joined along their last axis or those of the last core, and the states after the step.

        Args:
          inputs: `[batch, ..., features]`, or a structure of such arrays like that of the cores' outputs.
          prev_state: a tuple with the state of each core.

        Raises:
          ValueError: the number of states is not that of the cores.
        """
        all_outputs: list[Any] = []
        next_states = []
        for layer, state in zip(self.layers, checked_states(self, self.layers, prev_state), strict=True):
            seen = _joined(inputs, all_outputs[-1]) if all_outputs else inputs
            outputs, next_state = layer(seen, state)
            all_outputs.append(outputs)
            next_states.append(next_state)
        return _joined(*all_outputs) if self.concat_final_output else all_outputs[-1], tuple(next_states)

    def initial_state(self, batch_size: int, **kwargs: Any) -> States:
        """Returns a tuple with the initial state of each core; keyword arguments go to all of them.

        Args:
          batch_size: the number of sequences.
          **kwargs: of the cores' `initial_state`.
        """
        return initial_states(self.layers, batch_size, kwargs)


class ResidualCore(RNNCore):
    """`y = core(x) + x`.

    Args:
      base_core: the core; its name with `_residual` is this one's.
    """

    def __init__(self, base_core: RNNCore) -> None:
        super().__init__(name=f"{base_core.name}_residual")
        self.base_core = base_core

    def __call__(self, inputs: Any, prev_state: Any) -> tuple[Any, Any]:
        """Returns the sum of the core's outputs and its inputs, of the same structure and shapes, and its next state."""
        outputs, next_state = self.base_core(inputs, prev_state)
        return jax.tree.map(jnp.add, inputs, outputs), next_state

    def initial_state(self, batch_size: int, **kwargs: Any) -> Any:
        """Returns the core's initial state."""
        return self.base_core.initial_state(batch_size, **kwargs)


def deep_rnn_with_skip_connections(
    layers: Sequence[RNNCore], concat_final_output: bool = True, name: str = "deep_rnn_with_skip_connections"
) -> RNNCore:
    """Returns a core in which each core but the first also sees the inputs: `y_k = core_k([x, y_{k-1}])`.

    Args:
      layers: the cores.
      concat_final_output: whether the output is `[y_1, ..., y_n]`, joined along the last axis, instead of `y_n`.
      name: the module's name.

    Raises:
      ValueError: one of the layers is no core, or there is none.

    Source: Sonnet 2, `snt.deep_rnn_with_skip_connections`.

    >>> import modulekit as mk
    >>> core = mk.deep_rnn_with_skip_connections([mk.LSTM(4), mk.LSTM(4)])
    >>> core(jnp.ones([3, 5]), core.initial_state(3))[0].shape
    (3, 8)
    """
    return SkipRNN(_checked_cores(layers, "deep_rnn_with_skip_connections"), concat_final_output, name=name)


def deep_rnn_with_residual_connections(
    layers: Sequence[RNNCore], name: str = "deep_rnn_with_residual_connections"
) -> RNNCore:
    """Returns a core in which each core adds to what it sees: `y_k = core_k(y_{k-1}) + y_{k-1}`, where `y_0 = x`.

    Args:
      layers: the cores; each returns the shape that it takes, `[batch, ..., features]`.
      name: the module's name.

    Raises:
      ValueError: one of the layers is no core.

    Source: Sonnet 2, `snt.deep_rnn_with_residual_connections`.

    >>> import modulekit as mk
    >>> core = mk.deep_rnn_with_residual_connections([mk.LSTM(5), mk.LSTM(5)])
    >>> core(jnp.ones([3, 5]), core.initial_state(3))[0].shape
    (3, 5)
    """
    cores = _checked_cores(layers, "deep_rnn_with_residual_connections")
    return DeepRNN([ResidualCore(core) for core in cores], name=name)


def checked_states(module: Module, layers: Sequence[Layer], states: Any) -> States:
    """Returns one state for each core among the layers, or raises `ValueError` if there are more or fewer."""
    count = sum(isinstance(layer, RNNCore) for layer in layers)
    if count == 0:
        return ()  # whatever the caller carries, there is no core to take it
    if not isinstance(states, tuple | list) or len(states) != count:
        raise ValueError(
            f"{location(module)} expects a tuple of {count} states, one for each of its cores, got {form_of(states)}: "
            "begin with initial_state(batch_size)"
        )
    return tuple(states)


def initial_states(layers: Sequence[Layer], batch_size: int, kwargs: dict[str, Any]) -> States:
    """Returns the initial state of each core among the layers."""
    cores: list[Any] = [layer for layer in layers if isinstance(layer, RNNCore)]
    return tuple(core.initial_state(batch_size, **kwargs) for core in cores)


def _joined(*outputs: Any) -> Any:
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=-1), *outputs)


def _checked_cores(layers: Iterable[RNNCore], function: str) -> list[RNNCore]:
    cores = list(layers)
    for index, core in enumerate(cores):
        if not isinstance(core, RNNCore):
            raise ValueError(
                f"{function} requires all layers to be instances of RNNCore, and layers[{index}] is {summarize(core)}: use "
                "DeepRNN for layers that keep no state"
            )
    return cores
