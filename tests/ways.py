"""Ways to run a row of the catalogue: calls, training, gradients, first calls, copies and failures, under transforms."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from catalogue import STEPS, Row, state, variables_of

import modulekit as mk

# Calling a module several times. Each returns the stacked outputs, or the last one where a loop keeps no others.


def eager(row: Row, module: Any) -> Any:
    return jnp.stack([row.call(module, *inputs) for inputs in zip(*row.steps(), strict=True)])


def by_jit(row: Row, module: Any) -> Any:
    compiled = mk.jit(lambda *inputs: row.call(module, *inputs))
    return jnp.stack([compiled(*inputs) for inputs in zip(*row.steps(), strict=True)])


def by_one_jit(row: Row, module: Any) -> Any:
    return mk.jit(lambda: eager(row, module))()


def by_nested_jit(row: Row, module: Any) -> Any:
    inner = mk.jit(lambda inputs: row.call(module, *inputs))
    outer = mk.jit(lambda *inputs: inner(inputs))
    return jnp.stack([outer(*inputs) for inputs in zip(*row.steps(), strict=True)])


def by_scan(row: Row, module: Any) -> Any:
    return mk.scan(lambda carry, inputs: (carry, row.call(module, *inputs)), None, row.steps())[1]


def by_unrolled_scan(row: Row, module: Any) -> Any:
    return mk.scan(lambda carry, inputs: (carry, row.call(module, *inputs)), None, row.steps(), unroll=2)[1]


def by_jit_of_scan(row: Row, module: Any) -> Any:
    return mk.jit(lambda steps: mk.scan(lambda _, inputs: (None, row.call(module, *inputs)), None, steps)[1])(
        row.steps()
    )


def by_scan_of_jit(row: Row, module: Any) -> Any:
    compiled = mk.jit(lambda inputs: row.call(module, *inputs))
    return mk.scan(lambda _, inputs: (None, compiled(inputs)), None, row.steps())[1]


def by_scan_of_scan(row: Row, module: Any) -> Any:
    def outer(_: Any, steps: Any) -> tuple[Any, Any]:
        return mk.scan(lambda _, inputs: (None, row.call(module, *inputs)), None, steps)

    outputs = mk.scan(outer, None, jax.tree.map(lambda x: x[:, None], row.steps()))[1]
    return outputs[:, 0]


def by_fori_loop(row: Row, module: Any) -> Any:
    steps = jax.tree.map(jnp.asarray, row.steps())
    shape = jax.ShapeDtypeStruct(*output_spec(row))

    def body(i: Any, outputs: Any) -> Any:
        return outputs.at[i].set(row.call(module, *(x[i] for x in steps)))

    return mk.fori_loop(0, STEPS, body, jnp.zeros((STEPS, *shape.shape), shape.dtype))


def by_while_loop(row: Row, module: Any) -> Any:
    steps = jax.tree.map(jnp.asarray, row.steps())
    shape = jax.ShapeDtypeStruct(*output_spec(row))

    def body(loop: Any) -> Any:
        i, outputs = loop
        return i + 1, outputs.at[i].set(row.call(module, *(x[i] for x in steps)))

    start = (0, jnp.zeros((STEPS, *shape.shape), shape.dtype))
    return mk.jit(lambda: mk.while_loop(lambda loop: loop[0] < STEPS, body, start)[1])()


def by_pure_jit(row: Row, module: Any) -> Any:
    mk.build(module, *row.inputs, **row.options)
    pure, values = mk.functionalize(lambda inputs: row.call(module, *inputs), variables_of(module))
    compiled, outputs = jax.jit(pure), []
    for inputs in zip(*row.steps(), strict=True):
        output, values = compiled(values, inputs)
        outputs.append(output)
    pure.commit(values)
    return jnp.stack(outputs)


def by_pure_scan(row: Row, module: Any) -> Any:
    mk.build(module, *row.inputs, **row.options)
    pure, values = mk.functionalize(lambda inputs: row.call(module, *inputs), variables_of(module))

    def step(values: Any, inputs: Any) -> tuple[Any, Any]:
        output, values = pure(values, inputs)
        return values, output

    values, outputs = jax.lax.scan(step, values, row.steps())
    pure.commit(values)
    return outputs


def output_spec(row: Row) -> tuple[tuple[int, ...], Any]:
    output = row.call(row.make(), *row.inputs)
    mk.seed(7)
    return output.shape, output.dtype


# Training.


def trained_eagerly(row: Row, module: Any, optimizer: mk.Optimizer) -> list[float]:
    return [float(take_step(row, module, optimizer, inputs)) for inputs in zip(*row.steps(), strict=True)]


def trained_by_jit(row: Row, module: Any, optimizer: mk.Optimizer) -> list[float]:
    update = mk.jit(lambda inputs: take_step(row, module, optimizer, inputs))
    return [float(update(inputs)) for inputs in zip(*row.steps(), strict=True)]


def trained_by_scan(row: Row, module: Any, optimizer: mk.Optimizer) -> list[float]:
    return mk.scan(lambda _, inputs: (None, take_step(row, module, optimizer, inputs)), None, row.steps())[1].tolist()


def trained_by_jit_of_scan(row: Row, module: Any, optimizer: mk.Optimizer) -> list[float]:
    def run(steps: Any) -> Any:
        return mk.scan(lambda _, inputs: (None, take_step(row, module, optimizer, inputs)), None, steps)[1]

    return mk.jit(run)(row.steps()).tolist()


def trained_by_grad_of_jit(row: Row, module: Any, optimizer: mk.Optimizer) -> list[float]:
    loss_of = mk.jit(lambda inputs: row.loss(module, *inputs))
    losses = []
    for inputs in zip(*row.steps(), strict=True):
        loss, gradients = mk.value_and_grad(loss_of, module)(inputs)
        optimizer.apply(gradients, module.trainable_variables)
        losses.append(float(loss))
    return losses


def trained_by_minimize(row: Row, module: Any, optimizer: mk.Optimizer) -> list[float]:
    update = mk.jit(lambda *inputs: optimizer.minimize(lambda: row.loss(module, *inputs), module))
    return [float(update(*inputs)) for inputs in zip(*row.steps(), strict=True)]


def take_step(row: Row, module: Any, optimizer: mk.Optimizer, inputs: Any) -> Any:
    loss, gradients = mk.value_and_grad(lambda: row.loss(module, *inputs), module)()
    optimizer.apply(gradients, module.trainable_variables)
    return loss


def eager_first_state(row: Row) -> dict[str, np.ndarray]:
    module = row.fresh()
    mk.build(module, *row.inputs, **row.options)
    first = state(module)
    row.fresh()
    return first


# Gradients, by pairs of transforms.


def gradient(row: Row, module: Any) -> list[Any]:
    return mk.grad(lambda: row.loss(module), module)()


def gradient_by_jit(row: Row, module: Any) -> list[Any]:
    return mk.jit(lambda inputs: mk.grad(lambda: row.loss(module, *inputs), module)())(row.inputs)


def gradient_of_jit(row: Row, module: Any) -> list[Any]:
    return mk.grad(mk.jit(lambda *inputs: row.loss(module, *inputs)), module)(*row.inputs)


def gradient_by_jit_of_jit(row: Row, module: Any) -> list[Any]:
    inner = mk.jit(lambda *inputs: row.loss(module, *inputs))
    return mk.jit(lambda inputs: mk.grad(inner, module)(*inputs))(row.inputs)


def gradient_by_scan(row: Row, module: Any) -> list[Any]:
    stacked = jax.tree.map(lambda x: x[None], row.inputs)
    found = mk.scan(lambda _, inputs: (None, mk.grad(row.loss, module)(module, *inputs)), None, stacked)[1]
    return [gradients[0] for gradients in found]


def gradient_of_scan(row: Row, module: Any) -> list[Any]:
    stacked = jax.tree.map(lambda x: x[None], row.inputs)

    def loss() -> Any:
        return mk.scan(lambda total, inputs: (total + row.loss(module, *inputs), None), 0.0, stacked)[0]

    return mk.grad(loss, module)()


def gradient_by_fori_loop(row: Row, module: Any) -> list[Any]:
    mk.build(module, *row.inputs, **row.options)
    zeros = [jnp.zeros(v.shape, v.dtype) for v in module.trainable_variables]
    return mk.fori_loop(0, 1, lambda _, __: mk.grad(lambda: row.loss(module), module)(), zeros)


def gradient_of_jit_of_scan(row: Row, module: Any) -> list[Any]:
    stacked = jax.tree.map(lambda x: x[None], row.inputs)
    inner = mk.jit(lambda xs: mk.scan(lambda t, inputs: (t + row.loss(module, *inputs), None), 0.0, xs)[0])
    return mk.grad(inner, module)(stacked)


def gradient_by_jax(row: Row, module: Any, compiled: bool = False) -> list[Any]:
    mk.build(module, *row.inputs, **row.options)
    trained = list(module.trainable_variables)
    others = [v for v in variables_of(module) if v not in trained]
    pure, values = mk.functionalize(lambda: row.loss(module), [*trained, *others])
    split = len(trained)
    gradient = jax.grad(lambda ws: pure([*ws, *values[split:]]), has_aux=True)
    gradients, new = (jax.jit(gradient) if compiled else gradient)(values[:split])
    pure.commit(new)
    return gradients


def gradient_by_implicit_variables(row: Row, module: Any) -> list[Any]:
    pairs = dict(implicit_pairs(row, module))
    return [pairs[v] for v in module.trainable_variables]


def implicit_pairs(row: Row, module: Any) -> list[tuple[mk.Variable, Any]]:
    return [(v, g) for g, v in mk.implicit_value_and_gradients(lambda: row.loss(module))()[1]]


def vmapped(row: Row, module: Any, steps: Any) -> Any:
    pure, values = mk.functionalize(lambda *inputs: row.call(module, *inputs), variables_of(module))
    return jax.vmap(lambda inputs: pure(values, *inputs)[0])(steps)


# First calls.


def first_by_value_and_grad(row: Row, module: Any) -> None:
    mk.value_and_grad(lambda: jnp.sum(row.call(module)), module)()


def first_by_jit_around_grad(row: Row, module: Any) -> None:
    mk.jit(lambda: mk.grad(lambda: jnp.sum(row.call(module)), module)())()


def first_by_scan_of_grad(row: Row, module: Any) -> None:
    mk.scan(lambda _, __: (None, mk.grad(lambda: jnp.sum(row.call(module)), module)()), None, length=1)


def first_by_jit(row: Row, module: Any) -> None:
    mk.jit(lambda *inputs: row.call(module, *inputs))(*row.inputs)


def first_by_scan(row: Row, module: Any) -> None:
    mk.scan(lambda _, inputs: (None, row.call(module, *inputs)), None, jax.tree.map(lambda x: x[None], row.inputs))


def first_by_fori_loop(row: Row, module: Any) -> None:
    mk.fori_loop(0, 1, lambda _, total: total + jnp.sum(row.call(module)), 0.0)


def first_by_jit_of_jit_of_scan(row: Row, module: Any) -> None:
    inner = mk.jit(lambda: mk.scan(lambda _, __: (None, row.call(module)), None, length=1)[1])
    mk.jit(lambda: inner() * 2)()


def first_by_build(row: Row, module: Any) -> None:
    mk.build(module, *row.inputs, **row.options)


def first_by_lowering(row: Row, module: Any) -> None:
    mk.jit(lambda *inputs: row.call(module, *inputs)).lower(*row.inputs)


# Copies.


def copied(module: Any) -> Any:
    return copy.deepcopy(module)


def pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


# Failures.


class Stop(Exception):
    """What the failing functions below raise."""


def fail_in_jit(row: Row, module: Any) -> None:
    def run() -> None:
        row.call(module)
        raise Stop

    mk.jit(run)()


def fail_in_grad_in_jit(row: Row, module: Any) -> None:
    def loss() -> Any:
        row.call(module)
        raise Stop

    mk.jit(lambda: mk.grad(loss, module)())()


def fail_in_scan(row: Row, module: Any) -> None:
    def step(carry: Any, _: Any) -> Any:
        row.call(module)
        raise Stop

    mk.scan(step, None, length=2)


def fail_after_scan_in_jit(row: Row, module: Any) -> None:
    def run() -> None:
        mk.scan(lambda carry, _: (carry, row.call(module)), None, length=2)
        raise Stop

    mk.jit(run)()


def fail_in_while_loop(row: Row, module: Any) -> None:
    def body(i: Any) -> Any:
        row.call(module)
        raise Stop

    mk.while_loop(lambda i: i < 3, body, 0)


def fail_in_value_and_grad(row: Row, module: Any) -> None:
    def loss() -> Any:
        row.call(module)
        raise Stop

    mk.value_and_grad(loss, module)()


def fail_while_running(row: Row, module: Any) -> None:
    def shout(_: Any) -> Any:
        raise Stop

    def run() -> Any:
        output = row.call(module)
        return jax.pure_callback(shout, jax.ShapeDtypeStruct((), jnp.float32), output.sum())

    jax.block_until_ready(mk.jit(run)())


def fail_in_a_debug_callback(row: Row, module: Any) -> None:
    def shout(_: Any) -> None:
        raise Stop

    def run() -> Any:
        output = row.call(module)
        jax.debug.callback(shout, output.sum())
        return output

    jax.block_until_ready(mk.jit(run)())
    jax.effects_barrier()
