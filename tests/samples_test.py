"""Laws of drawing: numbers of many shapes come from few programs, and are those that JAX draws for each shape."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk
from modulekit.core import samples

OF_JAX: dict[Callable[..., Any], Callable[..., Any]] = {
    samples.normal: lambda key, shape, dtype, a, b: jax.random.normal(key, shape, dtype) * b + a,
    samples.truncated: lambda key, shape, dtype, a, b: (
        jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) * b + a
    ),
    samples.uniform: jax.random.uniform,
}


@settings(deadline=None, max_examples=12)
@given(
    sampler=st.sampled_from(list(OF_JAX)),
    shape=st.lists(st.integers(0, 40), max_size=3).map(tuple),
    seed=st.integers(0, 2**32 - 1),
)
def test_numbers_are_those_of_jax_for_the_shape(sampler: Any, shape: Any, seed: int) -> None:
    key = jax.random.key(seed)
    found, expected = (
        draw(key, shape, jnp.float32, -0.5, 0.75)
        for draw in (functools.partial(samples.drawn, sampler), OF_JAX[sampler])
    )
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2**14,), (2**14 + 1,), (300, 900), (2**21 + 1,)])
def test_large_arrays_are_those_of_jax(shape: tuple[int, ...]) -> None:
    key = jax.random.key(7)
    found, expected = (draw(key, shape, jnp.float32, 0.0, 1.0) for draw in (samples.normal, OF_JAX[samples.normal]))
    np.testing.assert_allclose(samples.drawn(samples.normal, key, shape, jnp.float32, 0.0, 1.0), found, rtol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("partitionable", [False, True])
@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_generators_whose_numbers_depend_on_the_size_draw_for_the_shape(
    implementation: Any, partitionable: bool
) -> None:
    with jax.threefry_partitionable(partitionable):
        key = jax.random.key(1, impl=implementation)
        found = samples.drawn(samples.truncated, key, (5, 7), jnp.float32, 0.0, 1.0)
        np.testing.assert_allclose(found, samples.truncated(key, (5, 7), jnp.float32, 0.0, 1.0), rtol=1e-6)


def test_layers_of_many_sizes_are_drawn_by_one_program(caplog: pytest.LogCaptureFixture) -> None:
    jax.clear_caches()
    with jax.log_compiles():
        mk.build(mk.nets.MLP([7, 9, 11, 13]), [2, 5])
    drawing = [r for r in caplog.records if r.message.startswith("Finished XLA compilation of jit(truncated)")]
    assert len(drawing) == 1
    assert math.prod((13, 11)) <= samples._SIZES[0]
