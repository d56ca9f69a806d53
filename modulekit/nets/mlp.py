"""`MLP`: a multi-layer perceptron."""

from collections.abc import Callable, Iterable

import jax
from jaxtyping import Array, Float

from modulekit.core.module import Module
from modulekit.core.randomness import next_key
from modulekit.initializers import Initializer
from modulekit.layers.dropout import dropout
from modulekit.layers.linear import Linear


class MLP(Module):
    """Linear layers with an activation between them: `h_k = activation(h_{k-1} w_k + b_k)`, where `h_0 = x`.

    The output is `y = h_{n-1} w_n + b_n`, without an activation unless `activate_final`.

    Args:
      output_sizes: the number of outputs of each layer.
      w_init: initializer of the weights; see `Linear`.
      b_init: initializer of the biases; see `Linear`.
      with_bias: whether the layers have biases.
      activation: applied after each layer but the last.
      dropout_rate: drops this share of the units before each activation, in training; None or 0 for none.
      activate_final: whether to drop out and activate after the last layer too.
      name: the module's name.

    Raises:
      ValueError: `b_init` without biases.

    Source: Sonnet 2, `snt.nets.MLP`.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> mlp = mk.nets.MLP([300, 100, 10])
    >>> mlp(jnp.ones([2, 784])).shape
    (2, 10)
    >>> mlp.variables[0].name
    'mlp/linear_0/b'
    """

    def __init__(
        self,
        output_sizes: Iterable[int],
        w_init: Initializer | None = None,
        b_init: Initializer | None = None,
        with_bias: bool = True,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        dropout_rate: float | None = None,
        activate_final: bool = False,
        name: str | None = None,
    ) -> None:
        if not with_bias and b_init is not None:
            raise ValueError(f"When with_bias=False b_init must not be set. Received: b_init={b_init!r}")
        super().__init__(name=name)
        self.w_init = w_init
        self.b_init = b_init
        self.with_bias = with_bias
        self.activation = activation
        self.dropout_rate = dropout_rate
        self.activate_final = activate_final
        self.layers = [
            Linear(size, with_bias, w_init, b_init, name=f"linear_{index}") for index, size in enumerate(output_sizes)
        ]

    @property
    def needs_is_training(self) -> bool:
        """Whether a call must say if it is training: so with dropout."""
        return self.dropout_rate not in (None, 0)

    def __call__(
        self, inputs: Float[Array, "batch *rest input_size"], is_training: bool | None = None
    ) -> Float[Array, "batch *rest output_size"]:
        """Returns the output of the last layer, `[batch, ..., output_sizes[-1]]`.

        Args:
          inputs: `[batch, ..., input_size]`.
          is_training: whether to drop out; to be given with dropout, and only then.

        Raises:
          ValueError: `is_training` is missing or superfluous, or a layer cannot take its input.
        """
        if self.needs_is_training and is_training is None:
            raise ValueError("The `is_training` argument is required when dropout is used.")
        if not self.needs_is_training and is_training is not None:
            raise ValueError("The `is_training` argument should only be used with dropout.")
        for index, layer in enumerate(self.layers):
            inputs = layer(inputs)
            if index < len(self.layers) - 1 or self.activate_final:
                if self.dropout_rate and is_training:
                    inputs = dropout(inputs, self.dropout_rate, next_key())
                inputs = self.activation(inputs)
        return inputs

    def reverse(self, activate_final: bool | None = None, name: str | None = None) -> "MLP":
        """Returns a new network from this one's outputs to its inputs, with weights of its own.

        Args:
          activate_final: whether it activates its last layer; as this one if None.
          name: its name; this one's with `_reversed` if None.

        Raises:
          ValueError: this network has not been called yet, so that its input sizes are unknown.

        >>> import modulekit as mk, jax.numpy as jnp
        >>> mlp = mk.nets.MLP([4, 3])
        >>> code = mlp(jnp.ones([1, 5]))
        >>> mlp.reverse()(code).shape
        (1, 5)
        """
        if not all(hasattr(layer, "input_size") for layer in self.layers):
            raise ValueError(
                f"{self!r} has not been called yet, and its input sizes are unknown: call it, then reverse it"
            )
        return MLP(
            [layer.input_size for layer in reversed(self.layers)],
            self.w_init,
            self.b_init,
            self.with_bias,
            self.activation,
            self.dropout_rate,
            self.activate_final if activate_final is None else activate_final,
            name=name or f"{self.name}_reversed",
        )
