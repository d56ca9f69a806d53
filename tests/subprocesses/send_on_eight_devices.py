"""Laws of what is said of collectives, against hand-written programs for eight devices whose communication is known."""

import os
from collections.abc import Callable
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from laws import check_laws, law

from scenarios.base.collectives import Collectives, Traffic, collectives_in

MESH = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
GRID = jax.make_mesh((2, 4), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)
P = PartitionSpec


def form(mesh: Any, shape: tuple[int, ...], *axes: Any, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))


def found(function: Callable[..., Any], *forms: Any, **options: Any) -> Collectives:
    return collectives_in(jax.jit(function, **options).lower(*forms).compile().as_text())


def mapped(function: Callable[..., Any], mesh: Any, into: Any, out: Any) -> Callable[..., Any]:
    return jax.shard_map(function, mesh=mesh, in_specs=into, out_specs=out, check_vma=False)


@law
def data_parallel_gradients_are_one_sum_of_the_weights_bytes() -> None:
    def step(w: Any, b: Any, x: Any, y: Any) -> Any:
        loss = lambda w, b: jnp.square(jnp.tanh(x @ w + b) - y).mean()  # noqa: E731
        gradients = jax.grad(loss, (0, 1))(w, b)
        return w - gradients[0], b - gradients[1]

    forms = form(MESH, (48, 32)), form(MESH, (32,)), form(MESH, (64, 48), "data"), form(MESH, (64, 32), "data")
    everywhere = NamedSharding(MESH, P())
    (traffic,) = found(step, *forms, out_shardings=(everywhere, everywhere)).kinds
    weights = 4 * (48 * 32 + 32)
    assert (traffic.kind, traffic.given, traffic.sent) == ("all-reduce", weights, 2 * 7 * weights // 8), traffic


@law
def each_kind_sends_what_its_formula_says() -> None:
    shape = (16, 8)
    whole, part = 4 * 16 * 8, 4 * 16 * 8 // 8
    ring = [(k, (k + 1) % 8) for k in range(8)]
    cases: list[tuple[Callable[[Any], Any], Any, Any, tuple[str, int, int]]] = [
        (lambda x: lax.psum(x, "data"), P(), P(), ("all-reduce", whole, 2 * 7 * whole // 8)),
        (lambda x: lax.all_gather(x, "data", tiled=True), P("data"), P(), ("all-gather", part, 7 * part)),
        (lambda x: lax.psum_scatter(x, "data", tiled=True), P(), P("data"), ("reduce-scatter", whole, 7 * whole // 8)),
        (lambda x: lax.all_to_all(x, "data", 1, 0), P("data"), P("data"), ("all-to-all", part, 7 * part // 8)),
        (lambda x: lax.ppermute(x, "data", ring), P("data"), P("data"), ("collective-permute", part, part)),
    ]
    for function, into, out, (kind, given, sent) in cases:
        told = found(mapped(function, MESH, into, out), form(MESH, shape, *into))
        assert told == Collectives((Traffic(kind, 1, given, sent),)), told


@law
def groups_are_those_of_the_axes_that_sum() -> None:
    size = 4 * 16
    for axes, n in (("rows", 2), ("columns", 4), (("rows", "columns"), 8)):
        told = found(mapped(lambda x, axes=axes: lax.psum(x, axes), GRID, P(), P()), form(GRID, (16,)))
        assert told.kinds == (Traffic("all-reduce", 1, size, round(2 * (n - 1) / n * size)),), (axes, told)


@law
def a_loop_counts_as_often_as_it_runs_and_once_where_that_is_not_known() -> None:
    def layers(x: Any, ws: Any) -> Any:
        return lax.scan(lambda c, w: (jnp.tanh(lax.psum(c @ w, "data")), None), x, ws)[0]

    def until(x: Any) -> Any:
        return lax.while_loop(lambda c: c.sum() < 100.0, lambda c: lax.psum(c * c, "data"), x)

    told = found(mapped(layers, MESH, (P(), P()), P()), form(MESH, (8, 16)), form(MESH, (5, 16, 16)))
    size = 4 * 8 * 16
    assert told == Collectives((Traffic("all-reduce", 5, 5 * size, 5 * 2 * 7 * size // 8),)), told
    told = found(mapped(until, MESH, P(), P()), form(MESH, (8, 16)))
    assert told == Collectives((Traffic("all-reduce", 1, size, 2 * 7 * size // 8),), are_all=False), told


@law
def of_two_branches_the_one_that_sends_more_counts() -> None:
    def either(flag: Any, x: Any) -> Any:
        return lax.cond(flag, lambda x: lax.psum(x, "data"), lambda x: x + lax.psum(x.sum(), "data"), x)

    told = found(mapped(either, MESH, (P(), P()), P()), form(MESH, (), dtype=bool), form(MESH, (8, 16)))
    size = 4 * 8 * 16
    assert told == Collectives((Traffic("all-reduce", 1, size, 2 * 7 * size // 8),)), told


check_laws(8)
