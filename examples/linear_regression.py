"""Fits y = 5 x, written three ways: assigning by hand, through an optimizer, and through a scenario."""

import jax
import jax.numpy as jnp
import tyro

import modulekit as mk
import scenarios


def by_hand(x: jax.Array, y: jax.Array, steps: int, rate: float) -> float:
    """A variable, its gradient, an assignment."""
    w = mk.Variable(0.0, name="w")
    gradient = mk.value_and_grad(lambda: ((x * w - y) ** 2).mean(), [w])
    for _ in range(steps):
        _, (g,) = gradient()
        w.assign_sub(rate * g)
    return float(w)


def with_an_optimizer(x: jax.Array, y: jax.Array, steps: int, rate: float) -> float:
    """A layer and an optimizer, in a compiled step that finds its variables by itself."""
    model, optimizer = mk.Linear(1, with_bias=False), mk.optimizers.SGD(rate)

    @mk.jit
    def step(x: jax.Array, y: jax.Array) -> jax.Array:
        return optimizer.minimize(lambda: mk.losses.squared_error(model(x), y).mean(), model)

    for _ in range(steps):
        step(x[:, None], y[:, None])
    return float(model.w.value[0, 0])


def with_a_scenario(x: jax.Array, y: jax.Array, steps: int, rate: float) -> float:
    """The loop as an object: batches, many steps in one program, progress, history."""
    model = mk.Linear(1, with_bias=False)
    fit = scenarios.Supervised(steps, batch_size=len(x), progress=False)
    fit(model, mk.optimizers.SGD(rate), mk.losses.squared_error, data=(x[:, None], y[:, None]))
    return float(model.w.value[0, 0])


def main(steps: int = 100, rate: float = 0.5) -> float:
    """Prints the slope that each way finds.

    Args:
      steps: gradient steps.
      rate: the learning rate.
    """
    x = jnp.linspace(-1.0, 1.0, 50)
    slopes = {way.__name__: way(x, 5.0 * x, steps, rate) for way in (by_hand, with_an_optimizer, with_a_scenario)}
    for name, slope in slopes.items():
        print(f"{name:>20}: y = {slope:.4f} x")
    worst = max(abs(slope - 5.0) for slope in slopes.values())
    print(f"largest error: {worst:.6f}")
    return worst


if __name__ == "__main__":
    tyro.cli(main)
