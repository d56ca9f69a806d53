"""Between host and device goes what is sent on purpose: a run sends nothing by the way, in whatever form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk
import scenarios

_RANDOM = np.random.default_rng(0)
DATA = _RANDOM.normal(size=(300, 5)).astype(np.float32), _RANDOM.integers(4, size=300).astype(np.int32)


@pytest.fixture
def guarded():
    """A hook that lets JAX refuse transfers by the way, from update 40 on."""

    def hook(event: Any) -> None:
        if isinstance(event, scenarios.events.Logged) and event.step >= 40:
            jax.config.update("jax_transfer_guard", "disallow")
        if isinstance(event, scenarios.events.Finished):
            jax.config.update("jax_transfer_guard", "allow")

    yield hook
    jax.config.update("jax_transfer_guard", "allow")


def test_the_guard_guards() -> None:
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):
        jnp.sin(np.ones(3))


def test_a_compiled_step_sends_nothing() -> None:
    model, optimizer = mk.nets.MLP([16, 4]), mk.optimizers.Adam()

    @mk.jit
    def step(x: Any, y: Any) -> Any:
        return optimizer.minimize(lambda: mk.losses.softmax_cross_entropy(model(x), y).mean(), model)

    x, y = map(jnp.asarray, DATA)
    step(x, y)
    with jax.transfer_guard("disallow"):
        losses = [step(x, y) for _ in range(3)]
    assert losses[2] < losses[0]


@pytest.mark.parametrize("steps_per_call", [1, 20, None])
@pytest.mark.parametrize("data_on_device", [True, False])
def test_a_run_sends_nothing_by_the_way(guarded: Any, steps_per_call: int | None, data_on_device: bool) -> None:
    train_it = scenarios.Supervised(
        200, batch_size=16, log_interval=20, steps_per_call=steps_per_call, data_on_device=data_on_device
    )
    parts = mk.nets.MLP([16, 4]), mk.optimizers.Adam(), mk.losses.softmax_cross_entropy
    assert train_it(*parts, data=DATA, hooks=[guarded]).step == 200


def test_a_run_whose_steps_are_called_one_by_one_sends_nothing_by_the_way(guarded: Any) -> None:
    class Large(mk.Module):
        """A step of it takes longer than what a call costs."""

        @mk.once
        def _make(self) -> None:
            self.layers = mk.nets.MLP([512, 512, 4])

        def __call__(self, x: Any) -> Any:
            self._make()
            return self.layers(x)

    train_it = scenarios.Supervised(100, batch_size=300, log_interval=20)
    parts = Large(), mk.optimizers.Adam(), mk.losses.softmax_cross_entropy
    assert train_it(*parts, data=DATA, hooks=[guarded]).step == 100
