"""`RNNCore` and `UnrolledRNN`: what a recurrent network can do, one step at a time or a whole sequence at once.

A core keeps nothing between its steps. The state goes in and comes out, so that the loop over time is a function
(`unroll.py`) of any core, and a sequence can be cut, repeated or run backward by whoever calls it.
"""

import abc
from typing import Any

from modulekit.core.module import Module


class RNNCore(Module):
    """Abstract: one step of a recurrent network, `outputs, next_state = core(inputs, prev_state)`.

    Source: Sonnet 2, `snt.RNNCore`.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> @mk.allow_empty_variables
    ... class Total(RNNCore):
    ...     def __call__(self, inputs, prev_state):
    ...         return prev_state + inputs, prev_state + inputs
    ...     def initial_state(self, batch_size):
    ...         return jnp.zeros([batch_size, 1])
    >>> core = Total()
    >>> outputs, state = mk.dynamic_unroll(core, jnp.ones([3, 2, 1]), core.initial_state(2))
    >>> outputs[:, 0, 0].tolist()
    [1.0, 2.0, 3.0]
    """

    @abc.abstractmethod
    def __call__(self, inputs: Any, prev_state: Any) -> tuple[Any, Any]:
        """Returns the outputs of one step, and the state after it.

        Args:
          inputs: any structure of arrays `[batch, ...]`.
          prev_state: the state after the step before.

        Returns:
          `(outputs, next_state)`: any structure of arrays `[batch, ...]`, and a state like `prev_state`.
        """

    @abc.abstractmethod
    def initial_state(self, batch_size: int) -> Any:
        """Returns the state before the first step, any structure of arrays; a core may take further keyword arguments.

        Args:
          batch_size: the number of sequences.
        """


class UnrolledRNN(Module):
    """Abstract: a recurrent network over a whole sequence, `output_sequence, final_state = rnn(input_sequence, state)`.

    Source: Sonnet 2, `snt.UnrolledRNN`.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> @mk.allow_empty_variables
    ... class Totals(UnrolledRNN):
    ...     def __call__(self, input_sequence, initial_state):
    ...         sums = initial_state + jnp.cumsum(input_sequence, axis=0)
    ...         return sums, sums[-1]
    ...     def initial_state(self, batch_size):
    ...         return jnp.zeros([batch_size, 1])
    >>> rnn = Totals()
    >>> outputs, state = rnn(jnp.ones([3, 2, 1]), rnn.initial_state(2))
    >>> outputs[:, 0, 0].tolist(), state.tolist()
    ([1.0, 2.0, 3.0], [[3.0], [3.0]])
    """

    @abc.abstractmethod
    def __call__(self, input_sequence: Any, initial_state: Any) -> tuple[Any, Any]:
        """Returns the outputs of all steps, and the state after the last one.

        Args:
          input_sequence: any structure of arrays `[time, batch, ...]`.
          initial_state: the state before the first step.

        Returns:
          `(output_sequence, final_state)`: any structure of arrays `[time, batch, ...]`, and a state like `initial_state`.
        """

    @abc.abstractmethod
    def initial_state(self, batch_size: int) -> Any:
        """Returns the state before the first step, any structure of arrays; a network may take further keyword arguments.

        Args:
          batch_size: the number of sequences.
        """
