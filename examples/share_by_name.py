"""One network function, called twice, with one set of variables: sharing by name, as in TensorFlow's variable scopes."""

import jax
import jax.numpy as jnp
import tyro

import modulekit as mk


def network(x: jax.Array) -> jax.Array:
    """Two layers that ask for their variables by name."""
    for index, size in enumerate((32, 1)):
        with mk.variable_scope(f"layer_{index}"):
            w = mk.get_variable("w", [x.shape[-1], size])
            b = mk.get_variable("b", [size])
            x = x @ w + b
        x = jnp.tanh(x) if index == 0 else x
    return x


def main(steps: int = 500, rate: float = 1e-2) -> float:
    """Learns which of two numbers is larger, with one scoring network for both; prints the share it gets right.

    Args:
      steps: updates of 256 pairs.
      rate: Adam's learning rate.
    """
    mk.seed(0)
    optimizer = mk.optimizers.Adam(rate)
    with mk.VariableStore() as store:
        try:
            network(jnp.ones([1, 1]))
            network(jnp.ones([1, 1]))
        except ValueError as error:
            print(f"asking twice without reuse: {error}\n")

        def scores(pairs: jax.Array) -> jax.Array:
            with mk.variable_scope(mk.get_variable_scope(), reuse=True):
                return network(pairs[:, :1]) - network(pairs[:, 1:])

        @mk.jit
        def step(pairs: jax.Array) -> jax.Array:
            larger = (pairs[:, :1] > pairs[:, 1:]).astype(jnp.float32)
            return optimizer.minimize(lambda: mk.losses.sigmoid_cross_entropy(scores(pairs), larger).mean(), store)

        for index in range(steps):
            step(jax.random.uniform(jax.random.key(index), [256, 2]))
        test = jax.random.uniform(jax.random.key(steps), [2000, 2])
        right = float(((scores(test)[:, 0] > 0) == (test[:, 0] > test[:, 1])).mean())
    print(store.summary())
    print(f"share of pairs in the right order: {right:.4f}")
    return right


if __name__ == "__main__":
    tyro.cli(main)
