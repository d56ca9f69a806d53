"""Laws of replicas, on four devices: checks each, and prints one JSON object of the laws that fail, with the reason."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from four_devices import (
    RANDOM,
    REPLICAS,
    Parts,
    X,
    Y,
    all_near,
    reduce_gradients,
    replicator,
    same_everywhere,
    split,
    values,
)
from laws import check_laws, law, near, refused

import modulekit as mk
from modulekit.core.randomness import default_stream


@law
def twenty_steps_on_four_replicas_are_those_of_the_full_batch_on_one_device() -> None:
    alone, together = Parts(), Parts(replicator)
    step, on_four = mk.jit(alone.step), mk.jit(together.step)
    for number in range(20):
        x, y = X + 0.1 * number, Y
        near(on_four(*split(x, y)), step(x, y))
    all_near(values(together.variables), values(alone.variables))
    same_everywhere(together.variables)
    assert len(on_four.traces) <= 2, on_four.traces


@law
def a_run_without_jit_is_the_same_and_makes_the_variables() -> None:
    compiled, plain = Parts(replicator), Parts(replicator)
    step = mk.jit(compiled.step)
    for _ in range(2):
        near(plain.step(*split(X, Y)), step(*split(X, Y)))
    all_near(values(plain.variables), values(compiled.variables))
    same_everywhere(plain.variables)


@law
def gradients_that_are_not_reduced_are_refused_and_nothing_changes() -> None:
    model, optimizer = mk.Linear(2, name="drifting"), mk.optimizers.Momentum(0.1, 0.9)
    model(X)
    before = values(model.variables)

    def update(x: Any, y: Any) -> None:
        gradients = mk.grad(lambda: jnp.mean(jnp.square(model(x) - y)), model)()
        optimizer.apply(gradients, model.trainable_variables)

    for run in (replicator.run, mk.jit(replicator.run)):
        refused(ValueError, "'drifting/b' is written by each replica", lambda run=run: run(update, args=split(X, Y)))
    for actual, expected in zip(values(model.variables), before, strict=True):
        np.testing.assert_array_equal(actual, expected)


@law
def an_exception_in_a_replica_leaves_all_as_it_was() -> None:
    total = mk.Variable(1.0, name="total")

    def fail() -> None:
        total.assign_add(1.0)
        raise KeyError("stop")

    refused(KeyError, "stop", lambda: replicator.run(fail))
    assert float(total) == 1.0
    assert mk.distribute.get_replica_context().num_replicas_in_sync == 1


def normalize(norm: Any, x: Any, weight: Any) -> Any:
    """Returns what a normalization gives in training, and the gradients for its variables and for its input."""

    def loss(x: Any) -> Any:
        y = norm(x, is_training=True)
        return jnp.sum(weight * y**3), y

    (_, y), (for_variables, for_x) = mk.value_and_grad(loss, norm, has_aux=True, argnums=0)(x)
    return y, mk.distribute.get_replica_context().all_reduce("sum", for_variables), for_x


@law
def statistics_of_all_replicas_are_those_of_the_full_batch() -> None:
    for shape, data_format in (((8, 3, 4), "NCW"), ((8, 4, 2, 3), "NHWC")):
        x, weight = (RANDOM.normal(1.0, 2.0, size=shape).astype(np.float32) for _ in range(2))
        axes = tuple(axis for axis in range(x.ndim) if axis != data_format.index("C"))
        average = mk.ExponentialMovingAverage
        norms = [
            mk.distribute.CrossReplicaBatchNorm(True, True, average(0.9), average(0.9), data_format=data_format)
            for _ in range(2)
        ]
        y, for_variables, for_x = mk.jit(replicator.run)(normalize, args=(norms[0], *split(x, weight)))
        expected, expected_for_variables, expected_for_x = mk.jit(normalize)(norms[1], x, weight)
        near(y.stacked.reshape(shape), expected)
        near(for_x.stacked.reshape(shape), expected_for_x, 2e-5)
        all_near([gradient.values[1] for gradient in for_variables], expected_for_variables, 1e-4)
        near(norms[0].moving_mean.value, x.mean(axes, keepdims=True))
        near(norms[0].moving_variance.value, x.var(axes, keepdims=True))
        same_everywhere(norms[0].non_trainable_variables)


@law
def of_moving_averages_the_first_replica_s_are_kept_or_what_a_rule_says() -> None:
    parts = X.reshape(REPLICAS, 2, 5)
    expected = {None: parts[0].mean(0), "first": parts[0].mean(0), "mean": X.mean(0)}
    for rule, mean in expected.items():
        norm = mk.BatchNorm(False, False)
        on = mk.distribute.Replicator(writes=rule)
        on.run(lambda x, norm=norm: norm(x, is_training=True), args=split(X))
        near(norm.moving_mean.value[0], mean)
        assert [int(v) for v in norm.variables if v.name.endswith("counter")] == [1, 1]
        same_everywhere(norm.moving_mean.variables)
    total = mk.Variable(10.0, trainable=False, name="total")
    for writes in ("sum", {total: "sum"}):
        total.assign(10.0)
        mk.distribute.Replicator(writes=writes).run(lambda x: total.assign_add(x.sum()), args=split(X))
        near(total, 10 + X.sum())
    refused(ValueError, "The rule 'max' is none", lambda: mk.distribute.Replicator(writes="max").run(
        lambda x: total.assign_add(x.sum()), args=split(X)))  # fmt: skip


@law
def replicas_draw_different_numbers_and_the_same_ones_again() -> None:
    def draw() -> Any:
        return jax.random.normal(mk.next_key(), [3]), jax.random.normal(mk.next_key(), [3])

    runs = []
    for run in (replicator.run, mk.jit(replicator.run)):
        mk.seed(5)
        first, second = run(draw)
        third, _ = run(draw)
        runs.append(np.concatenate([first.stacked, second.stacked, third.stacked]))
        assert int(default_stream().counter) == 4
        same_everywhere([default_stream().counter])
    assert len(np.unique(runs[0])) == 3 * 3 * REPLICAS
    np.testing.assert_array_equal(runs[0], runs[1])


@law
def dropout_trains_the_same_weights_on_all_replicas() -> None:
    layer, dropout, optimizer = mk.Linear(2), mk.Dropout(0.5), mk.optimizers.SGD(0.1)

    def update(x: Any) -> None:
        gradients = mk.grad(lambda: jnp.mean(jnp.square(layer(dropout(x, is_training=True)) - 1)), layer)()
        optimizer.apply(reduce_gradients(gradients), layer.trainable_variables)

    step = mk.jit(lambda x: replicator.run(update, args=(x,)))
    for _ in range(2):
        step(*split(X))
    same_everywhere(layer.variables)


@law
def loops_branches_and_remat_work_on_the_replicas() -> None:
    core, seen = mk.LSTM(3), mk.Variable(0, trainable=False, name="seen")
    sequence = RANDOM.normal(size=(8, 6, 5)).astype(np.float32)

    def on_replica(batch: Any) -> Any:
        inputs = jnp.swapaxes(batch, 0, 1)
        outputs, _ = mk.dynamic_unroll(core, inputs, core.initial_state(batch.shape[0]))
        mk.cond(outputs.sum() > -1e9, lambda: seen.assign_add(1), lambda: None)
        gradients = mk.grad(
            lambda: mk.remat(lambda: core(inputs[0], core.initial_state(batch.shape[0]))[0].sum())(), core
        )()
        return jnp.swapaxes(outputs, 0, 1), mk.distribute.get_replica_context().all_reduce("SUM", gradients)

    outputs, gradients = mk.jit(replicator.run)(on_replica, args=split(sequence))
    inputs = jnp.swapaxes(sequence, 0, 1)
    expected, _ = mk.jit(lambda: mk.dynamic_unroll(core, inputs, core.initial_state(8)))()
    near(outputs.stacked.reshape(8, 6, 3), jnp.swapaxes(expected, 0, 1))
    alone = mk.jit(mk.grad(lambda: core(inputs[0], core.initial_state(8))[0].sum(), core))()
    all_near([gradient.values[3] for gradient in gradients], alone)
    assert int(seen) == 1


@law
def many_steps_in_one_loop_on_the_replicas_keep_the_weights_together() -> None:
    alone, together = Parts(), Parts(replicator)
    xs, ys = np.stack([X, -X, 2 * X]), np.stack([Y, Y, -Y])
    mk.scan(lambda carry, batch: (carry, alone.update(*batch)), None, (xs, ys))

    def on_replica(x: Any, y: Any) -> Any:  # [batch, steps, ...]
        batches = (jnp.swapaxes(x, 0, 1), jnp.swapaxes(y, 0, 1))
        return mk.scan(lambda carry, batch: (carry, together.update(*batch)), None, batches)[1]

    mk.jit(replicator.run)(on_replica, args=split(xs.swapaxes(0, 1), ys.swapaxes(0, 1)))
    all_near(values(together.variables), values(alone.variables))
    same_everywhere(together.variables)


@law
def a_gradient_passes_through_a_run() -> None:
    w = mk.Variable(jnp.arange(1.0, 6.0), name="w")

    def loss() -> Any:
        return replicator.reduce("mean", replicator.run(lambda x: jnp.mean((x * w) ** 2), args=split(X)))

    for both in (mk.value_and_grad(loss, [w]), mk.jit(mk.value_and_grad(loss, [w]))):
        value, (gradient,) = both()
        near(value, np.mean((X * np.arange(1.0, 6.0)) ** 2))
        near(gradient, np.mean(2 * X**2 * np.arange(1.0, 6.0), axis=0) / 5)


@law
def arguments_are_split_shared_or_static() -> None:
    model = mk.Linear(1, w_init=mk.initializers.Ones())
    whole = jnp.arange(3.0)

    def on_replica(x: Any, y: Any, model: Any, *, scale: Any, name: str, flag: bool) -> Any:
        assert flag is True and name == "n" and y.shape == (3,)
        context = mk.distribute.get_replica_context()
        assert context.num_replicas_in_sync == REPLICAS
        return {"a": [model(x) * scale + y.sum() + whole.sum(), None], "id": context.replica_id_in_sync_group}

    options = {"scale": 2.0, "name": "n", "flag": True}
    for run in (replicator.run, mk.jit(replicator.run)):
        result = run(on_replica, args=(*split(X), whole, model), kwargs=options)
        near(result["a"][0].stacked.reshape(8), 2 * X.sum(1) + 6)
        assert result["a"][1] is None
        assert [int(number) for number in result["id"].values] == [0, 1, 2, 3]


@law
def results_are_reduced_and_taken_apart() -> None:
    result = replicator.run(lambda x: {"x": x, "one": 1.0}, args=split(X))
    near(replicator.reduce("sum", result, axis=None)["x"], X.reshape(4, 2, 5).sum(0))
    near(replicator.reduce("MEAN", result["x"], axis=0), X.mean(0))
    near(replicator.reduce("sum", result["x"], axis=-1), X.reshape(4, 2, 5).sum((0, 2)))
    near(replicator.reduce("mean", 3.0), 3.0)
    refused(ValueError, "has no sum", lambda: replicator.reduce("sum", 3.0))
    refused(ValueError, "not by 'max'", lambda: replicator.reduce("max", result))
    local = replicator.experimental_local_results(result)
    assert len(local) == REPLICAS
    near(local[2]["x"], X[4:6])
    made = replicator.experimental_distribute_values_from_function(lambda c: np.full([2], c.replica_id_in_sync_group))
    assert [part.tolist() for part in made.values] == [[0, 0], [1, 1], [2, 2], [3, 3]]
    near(replicator.reduce("sum", replicator.run(lambda v: v + 1, args=(made,))), [10, 10])
    refused(ValueError, "has no 4 equal parts", lambda: split(X[:6]))
    half = mk.distribute.Replicator(jax.devices()[:2])
    refused(ValueError, "has 2 replicas, and an argument has values for 4", lambda: half.run(jnp.sum, args=split(X)))


@law
def variables_used_outside_of_the_run_in_one_program_join_the_devices() -> None:
    parts, inside = Parts(), Parts(replicator)
    alone = mk.jit(parts.step)

    @mk.jit
    def step(x: Any, y: Any) -> Any:  # the optimizer, with its slots, stands outside of the run
        def on_replica(x: Any, y: Any) -> Any:
            return mk.grad(lambda: inside.loss(x, y), inside.model)()

        gradients = replicator.reduce("mean", replicator.run(on_replica, args=(x, y)))
        inside.optimizer.apply(gradients, inside.model.trainable_variables)

    for _ in range(3):
        step(*split(X, Y))
        alone(X, Y)
    all_near(values(inside.variables), values(parts.variables))


@law
def a_compiled_function_may_run_on_replicas_and_outside_of_them() -> None:
    w = mk.Variable(2.0, name="w")

    @mk.jit
    def mean(x: Any) -> Any:
        return mk.distribute.get_replica_context().all_reduce("mean", jnp.mean(x * w))

    for _ in range(2):
        near(mean(X[:2]), 2 * X[:2].mean())
        near(replicator.run(mean, args=split(X)).stacked, [2 * X.mean()] * REPLICAS)
        near(mk.jit(replicator.run)(mean, args=split(X)).stacked, [2 * X.mean()] * REPLICAS)


@law
def a_plain_transform_inside_reads_variables() -> None:
    w = mk.Variable(2.0, name="w")
    scaled = jax.jit(lambda x: x * w)
    for factor in (2.0, 3.0):
        w.assign(factor)
        near(mk.jit(replicator.run)(scaled, args=split(X)).stacked.reshape(8, 5), factor * X)


@law
def step_by_step_and_with_taps_it_is_the_same() -> None:
    w = mk.Variable(jnp.ones([5]), name="w")

    def on_replica(x: Any) -> Any:
        loss, gradients = mk.value_and_grad(lambda: jnp.mean((x * w) ** 2), [w])()
        mk.optimizers.SGD(0.1).apply(reduce_gradients(gradients), [w])
        return loss

    for context in (contextlib.nullcontext, mk.eager, mk.find_nonfinite):
        w.assign(jnp.ones([5]))
        with context():
            loss = replicator.reduce("mean", mk.jit(replicator.run)(on_replica, args=split(X)))
        near(loss, np.mean(X**2))
        near(w, 1 - 0.1 * np.mean(2 * X**2, axis=0) / 5)


@law
def a_step_reduces_each_gradient_once_and_nothing_else() -> None:
    parts = Parts(replicator)
    step = mk.jit(parts.step)
    step(*split(X, Y))
    text = step.lower(*split(X, Y)).as_text()
    assert text.count("stablehlo.all_reduce") == len(parts.model.trainable_variables), text
    assert "all_gather" not in text and "partition_id" not in text


@law
def a_function_that_always_makes_variables_is_refused() -> None:
    refused(mk.errors.UnsettledTraceError, "mk.distribute.Replicator.run", lambda: replicator.run(
        lambda x: x * mk.Variable(1.0), args=split(X)))  # fmt: skip


@law
def fewer_devices_by_name_do_as_well() -> None:
    on = mk.distribute.Replicator(["/device:CPU:2", "CPU:3"])
    assert on.num_replicas_in_sync == 2
    step, expected = mk.jit(Parts(on).step), mk.jit(Parts().step)
    for batch in on.experimental_distribute_dataset([(X, Y)] * 3):
        near(step(*batch), expected(X, Y))
    one = mk.distribute.Replicator(["cpu:1"])
    assert one.run(lambda: jnp.ones([2]) * 2).devices() == {jax.devices()[1]}
    refused(ValueError, "there is no device 'cpu:4'", lambda: mk.distribute.Replicator(["cpu:4"]))
    refused(ValueError, "each once", lambda: mk.distribute.Replicator([jax.devices()[0]] * 2))


check_laws(REPLICAS)
