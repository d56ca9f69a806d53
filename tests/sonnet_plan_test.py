"""Laws of plans: a module that takes Sonnet's values computes what Sonnet computes, and nothing is taken by half."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_writer import write

import modulekit as mk
from modulekit.errors import CheckpointError, ForeignTransformError

RECORDED = Path(__file__).parent / "recorded"


class Recognizer(mk.Module):
    """The module of `recorded/write_checkpoints.py`, line by line, but for the import and for what is public here."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.conv = mk.Conv2D(4, 3, name="conv")
        self._norm = mk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)
        self._start = mk.TrainableState(mk.LSTMState(jnp.full([3], 0.1), jnp.full([3], -0.2)))
        self._heads = {"core": mk.LSTM(3), "out": (mk.Linear(2), mk.Linear(2))}

    def __call__(self, images: Any, is_training: bool) -> Any:
        maps = jax.nn.relu(self._norm(self.conv(images), is_training=is_training))
        rows = jnp.transpose(jnp.mean(maps, 2), [1, 0, 2])
        core: Any = self._heads["core"]
        features, _ = mk.dynamic_unroll(core, rows, self._start(images.shape[0]))
        first, second = self._heads["out"]
        return first(features[-1]) - second(features[-1])


def expected(name: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(RECORDED / f"{name}.npz") as arrays:
        return dict(arrays)


def read(name: str) -> mk.sonnet.Checkpoint:
    return mk.sonnet.read_checkpoint(RECORDED / name)


def built(sizes: tuple[int, ...] = (4, 3), **settings: Any) -> Any:
    model = mk.nets.MLP(sizes, **settings)
    mk.build(model, [2, 5])
    return model


def values(module: mk.Module) -> dict[str, Any]:
    return {path: variable.numpy().tolist() for path, variable in module.paths().items()}


# Sonnet's values, Sonnet's outputs.


@pytest.mark.parametrize("by", ["path", "name"])
def test_a_network_computes_what_sonnets_computed(by: Any) -> None:
    model, recorded = built(), expected("mlp_adam")
    mk.sonnet.plan(read("mlp_adam-1"), {"model": model}, by=by).apply()
    np.testing.assert_allclose(model(recorded["x"]), recorded["now"], rtol=0, atol=1e-5)


def test_a_module_of_ones_own_computes_what_sonnets_computed() -> None:
    recorded, model = expected("recognizer"), Recognizer()
    images = jnp.asarray(recorded["images"])
    mk.build(lambda: model(images, is_training=True))
    plan = mk.sonnet.plan(read("recognizer"), model)
    plan.apply()
    assert repr(plan) == "Plan(19 matched, 0 wrong, 0 missing, 0 unexpected)"
    np.testing.assert_allclose(model(images, is_training=False), recorded["testing"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(model(images, is_training=True), recorded["training"], rtol=0, atol=1e-5)


OPTIMIZERS = {
    "adam": lambda: mk.optimizers.Adam(0.01),
    "momentum": lambda: mk.optimizers.Momentum(0.01, 0.9),
    "rms_prop": lambda: mk.optimizers.RMSProp(0.01, momentum=0.9, centered=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("by", ["path", "name"])
def test_training_goes_on_as_it_would_have_gone_on_in_sonnet(name: str, by: Any) -> None:
    model, optimizer, recorded = mk.nets.MLP([4, 3]), OPTIMIZERS[name](), expected(f"mlp_{name}")

    @mk.jit
    def step(x: Any) -> None:
        optimizer.minimize(lambda: jnp.sum((model(x) - 1.0) ** 2), model)

    mk.build(step, jnp.asarray(recorded["x"]))
    plan = mk.sonnet.plan(read(f"mlp_{name}-1"), {"model": model, "optimizer": optimizer}, by=by)
    assert not (plan.missing or plan.wrong or plan.unexpected), plan
    plan.apply()
    step(jnp.asarray(recorded["x"]))
    np.testing.assert_allclose(model(recorded["x"]), recorded["then"], rtol=0, atol=1e-5)
    assert np.abs(recorded["then"] - recorded["now"]).max() > 1e-3


# What is printed.


def test_a_plan_prints_what_matches_what_is_wrong_what_is_missing_and_what_is_left() -> None:
    model = built((4, 2, 3))
    plan = mk.sonnet.plan(read("mlp_momentum-1"), {"model": model})
    assert (
        str(plan)
        == """\
| Variable          | Checkpoint                       | Spec     | Result                         |
|-------------------+----------------------------------+----------+--------------------------------|
| model.layers[0].b | model/_layers/0/b                | f32[4]   | matched                        |
| model.layers[0].w | model/_layers/0/w                | f32[5,4] | matched                        |
| model.layers[1].b | model/_layers/1/b                | f32[2]   | shape [3] in the checkpoint    |
| model.layers[1].w | model/_layers/1/w                | f32[4,2] | shape [4, 3] in the checkpoint |
| model.layers[2].b |                                  | f32[3]   | missing                        |
| model.layers[2].w |                                  | f32[2,3] | missing                        |
|                   | optimizer/accumulated_momentum/0 | f32[4]   | unexpected                     |
|                   | optimizer/accumulated_momentum/1 | f32[5,4] | unexpected                     |
|                   | optimizer/accumulated_momentum/2 | f32[3]   | unexpected                     |
|                   | optimizer/accumulated_momentum/3 | f32[4,3] | unexpected                     |
2 matched, 2 wrong, 2 missing, 4 unexpected"""
    )
    assert [line.variable.name for line in plan.missing] == ["mlp/linear_2/b", "mlp/linear_2/w"]
    assert [line.tensor.name for line in plan.matched] == ["mlp/linear_0/b", "mlp/linear_0/w"]


def test_a_module_that_stood_below_the_checkpoints_root_is_told_how_to_be_named() -> None:
    plan = mk.sonnet.plan(read("mlp_adam-1"), built())
    hint = (
        "Nothing fits: the variables of the checkpoint stand below 'model', 'optimizer'. Name the parts as they were given "
        "to tf.train.Checkpoint, as in plan(checkpoint, {'model': module})."
    )
    assert str(plan).endswith(f"0 matched, 0 wrong, 4 missing, 13 unexpected\n{hint}")
    with pytest.raises(CheckpointError, match=re.escape(hint)):
        plan.apply()


# All or nothing.


@pytest.mark.parametrize("allow_missing", [False, True])
def test_a_wrong_shape_leaves_all_as_it_was(allow_missing: bool) -> None:
    model = built((4, 2))
    before = values(model)
    with pytest.raises(CheckpointError) as raised:
        mk.sonnet.plan(read("mlp_adam-1"), {"model": model}).apply(allow_missing=allow_missing)
    assert values(model) == before
    assert (
        str(raised.value)
        == """\
the checkpoint does not fit: 2 matched, 2 wrong, 0 missing, 9 unexpected. Nothing has changed.
| Variable          | Checkpoint        | Spec     | Result                         |
|-------------------+-------------------+----------+--------------------------------|
| model.layers[1].b | model/_layers/1/b | f32[2]   | shape [3] in the checkpoint    |
| model.layers[1].w | model/_layers/1/w | f32[4,2] | shape [4, 3] in the checkpoint |
Build the module as the saved one was, or give `rename` where only names differ."""
    )


def test_what_is_missing_keeps_its_values_only_if_allowed() -> None:
    model = built((4, 3, 2))
    before, plan = values(model), mk.sonnet.plan(read("mlp_adam-1"), {"model": model})
    with pytest.raises(CheckpointError, match=r"apply\(allow_missing=True\) lets what is missing keep its value\.$"):
        plan.apply()
    assert values(model) == before
    plan.apply(allow_missing=True)
    changed = {path for path, value in values(model).items() if value != before[path]}
    assert changed == {"layers[0].b", "layers[0].w", "layers[1].b", "layers[1].w"}


def test_a_damaged_tensor_leaves_all_as_it_was(tmp_path: Path) -> None:
    a, b = np.ones([3], np.float32), np.ones([2], np.float32)
    write(tmp_path / "x", {"a": a, "b": b})
    model = mk.Module()
    model.a, model.b = mk.Variable(jnp.zeros(3), name="a"), mk.Variable(jnp.zeros(2), name="b")
    shard = tmp_path / "x.data-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="the 8 bytes of tensor 'b' at byte 12 have another checksum"):
        mk.sonnet.plan(mk.sonnet.read_checkpoint(tmp_path / "x"), model, by="name").apply()
    assert values(model) == {"a": [0, 0, 0], "b": [0, 0]}


def test_a_plan_is_not_applied_inside_of_a_plain_jax_transform() -> None:
    model = built()
    before, plan = values(model), mk.sonnet.plan(read("mlp_adam-1"), {"model": model})
    with pytest.raises(ForeignTransformError):
        jax.jit(plan.apply)()
    assert values(model) == before


# Which tensor is meant.


def test_a_repeated_name_is_refused_by_name_and_found_by_path() -> None:
    first, second = mk.Linear(2), mk.Linear(1)
    mk.build(lambda x: (first(x), second(x)), [2, 5])
    pair = mk.Module()
    pair.layers = [first, second]
    plan = mk.sonnet.plan(read("kinds"), pair, by="name")
    assert [line.result for line in plan.wrong] == [
        "2 variables are named 'linear/b': give by='path'", "2 variables are named 'linear/w': give by='path'",
        "2 variables are named 'linear/b': give by='path'", "2 variables are named 'linear/w': give by='path'",
    ]  # fmt: skip
    plan = mk.sonnet.plan(read("kinds"), first, by="name")
    assert {line.result for line in plan.wrong} == {
        "2 saved variables are named 'linear/b': give by='path'", "2 saved variables are named 'linear/w': give by='path'",
    }  # fmt: skip
    mk.sonnet.plan(read("kinds"), pair).apply()
    np.testing.assert_array_equal(first.w.numpy(), expected("kinds")["w"])


def test_a_tied_variable_takes_the_value_that_is_tied_in_the_checkpoint_and_no_other() -> None:
    layer = mk.Linear(2)
    mk.build(layer, [2, 5])
    tied = {"layers": mk.Module(), "again": mk.Module()}
    tied["layers"].zero = layer
    tied["again"].same = layer
    plan = mk.sonnet.plan(read("kinds"), tied, rename={"layers/0": "layers/zero"})
    assert len(plan.matched) == 2
    plan = mk.sonnet.plan(read("kinds"), tied, rename={"layers/0": "layers/zero", "layers/1": "again/same"})
    assert [line.result for line in plan.wrong] == [
        "one variable here, and layers/0/b and layers/1/b in the checkpoint",
        "one variable here, and layers/0/w and layers/1/w in the checkpoint",
    ]


def test_two_variables_do_not_take_one_tensor() -> None:
    module = mk.Module()
    module._v0, module.__v0 = mk.Variable(jnp.zeros(20), name="a"), mk.Variable(jnp.zeros(20), name="b")
    (wrong,) = mk.sonnet.plan(read("shards"), module).wrong
    assert wrong.result == "__v0 takes v0 as well"


def test_slots_in_another_order_are_found_by_their_names_and_others_are_refused() -> None:
    recorded = expected("mlp_adam")
    model, optimizer = built(), mk.optimizers.Adam(0.01)
    w0, b0 = model.layers[0].w, model.layers[0].b
    others = [model.layers[1].w, model.layers[1].b]
    optimizer.apply([jnp.zeros(v.shape) for v in (w0, b0, *others)], [w0, b0, *others])
    mk.sonnet.plan(read("mlp_adam-1"), {"optimizer": optimizer}).apply()
    np.testing.assert_array_equal(optimizer.m[0].numpy(), recorded["adam/m/mlp/linear_0/w"])
    np.testing.assert_array_equal(optimizer.v[3].numpy(), recorded["adam/v/mlp/linear_1/b"])
    stranger, optimizer = mk.Variable(jnp.zeros(4), name="stranger"), mk.optimizers.Adam(0.01)
    optimizer.apply([jnp.zeros(4)], [stranger])
    plan = mk.sonnet.plan(read("mlp_adam-1"), {"optimizer": optimizer})
    assert [line.result for line in plan.wrong] == [
        "'adam/m/mlp/linear_0/b' at this position in the checkpoint, and here 'adam/m/stranger'",
        "'adam/v/mlp/linear_0/b' at this position in the checkpoint, and here 'adam/v/stranger'",
    ]


@pytest.mark.parametrize(
    ("by", "rename"),
    [("path", {"model/_layers": "net/layers"}), ("name", {"mlp": "net", "mlp/linear_0": "net/linear_0"})],
)
def test_what_is_called_otherwise_is_found_by_rename(by: Any, rename: dict[str, str]) -> None:
    model, recorded = built(name="net"), expected("mlp_adam")
    mk.sonnet.plan(read("mlp_adam-1"), {"net": model}, by=by, rename=rename).apply()
    np.testing.assert_allclose(model(recorded["x"]), recorded["now"], rtol=0, atol=1e-5)


def test_the_root_may_be_renamed_away() -> None:
    assert len(mk.sonnet.plan(read("mlp_adam-1"), built(), rename={"model": ""}).matched) == 4


@pytest.mark.parametrize(
    ("rename", "problem"),
    [
        ({"model": "modle"}, "rename to 'modle' is of no use: nothing in the module begins so"),
        ({"a": "model", "b": "model"}, "rename leads twice to 'model', so that it cannot be followed back"),
    ],
)
def test_a_rename_that_does_nothing_is_refused(rename: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        mk.sonnet.plan(read("mlp_adam-1"), {"model": built()}, rename=rename)


# What is refused at once.


def test_a_module_that_is_not_built_is_told_to_be_built() -> None:
    message = (
        "MLP([4, 3]) has no variables yet, so that nothing of the checkpoint could find its place: build it first, as in "
        "mk.build(module, [batch, features]), or mk.build(step, x, y) for an optimizer's slots"
    )
    with pytest.raises(ValueError) as raised:
        mk.sonnet.plan(read("mlp_adam-1"), mk.nets.MLP([4, 3]))
    assert message.partition(" has")[2] == str(raised.value).partition(" has")[2]


def test_an_unknown_way_to_match_is_refused() -> None:
    with pytest.raises(ValueError, match="by='shape': a plan goes by 'path' or by 'name'"):
        mk.sonnet.plan(read("mlp_adam-1"), built(), by="shape")


def test_a_checkpoint_without_objects_goes_by_name_only(tmp_path: Path) -> None:
    layer = mk.Linear(2)
    mk.build(layer, [1, 3])
    w = np.arange(6, dtype=np.float32).reshape(3, 2)
    write(tmp_path / "x", {"linear/w": w, "linear/b": np.ones(2, np.float32)})
    checkpoint = mk.sonnet.read_checkpoint(tmp_path / "x")
    with pytest.raises(ValueError, match="holds names without objects, as TensorFlow 1 wrote them: give by='name'"):
        mk.sonnet.plan(checkpoint, layer)
    mk.sonnet.plan(checkpoint, layer, by="name").apply()
    np.testing.assert_array_equal(layer.w.numpy(), w)


# Dtypes.


def test_counters_become_int32_where_they_fit(tmp_path: Path) -> None:
    count = mk.Module()
    count.n = mk.Variable(jnp.zeros([2], jnp.int32), name="n")
    write(tmp_path / "fits", {"n": np.array([-(2**31), 2**31 - 1])})
    mk.sonnet.plan(mk.sonnet.read_checkpoint(tmp_path / "fits"), count, by="name").apply()
    assert values(count) == {"n": [-(2**31), 2**31 - 1]}
    write(tmp_path / "large", {"n": np.array([1, 2**31])})
    plan = mk.sonnet.plan(mk.sonnet.read_checkpoint(tmp_path / "large"), count, by="name")
    with pytest.raises(CheckpointError) as raised:
        plan.apply()
    assert str(raised.value) == (
        "n is int32, and SavedTensor('n', i64[2]) has values from 1 to 2147483648, which do not fit: enable 64 bits in JAX "
        "(jax_enable_x64) and make the variable int64. Nothing has changed"
    )
    assert values(count) == {"n": [-(2**31), 2**31 - 1]}


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.bool_, np.complex64])
def test_other_dtypes_are_not_converted(tmp_path: Path, dtype: Any) -> None:
    module = mk.Module()
    module.x = mk.Variable(jnp.zeros([2]), name="x")
    write(tmp_path / "x", {"x": np.ones([2], dtype)})
    (wrong,) = mk.sonnet.plan(mk.sonnet.read_checkpoint(tmp_path / "x"), module, by="name").wrong
    assert wrong.result == f"dtype {np.dtype(dtype)} in the checkpoint"
