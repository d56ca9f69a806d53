"""Laws of names in files of weights: however a path is written or called elsewhere, it means one variable or is refused."""

import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from weights_plan_test import pair
from weights_test import holding, network, refused

import modulekit as mk
from modulekit.core.patterns import parts_of
from modulekit.weights.renaming import Renaming


def test_a_path_may_be_written_in_any_way() -> None:
    module = mk.Module()
    module.table = {"a": [mk.Variable(0.0)]}
    for number, name in enumerate(["table['a'][0]", "table.a.0", "table/a/0"], start=1):
        mk.weights.load({name: np.float32(number)}, module)
        assert float(module.table["a"][0]) == number


def test_a_name_that_may_mean_several_variables_is_refused_and_an_exact_one_is_not() -> None:
    module = mk.Module()
    module.table = {0: mk.Variable(0.0), "0": mk.Variable(0.0)}
    message = refused(ValueError, lambda: mk.weights.plan({"table.0": np.float32(1)}, module))
    assert message == "'table.0' may mean table[0] or table['0']: give one of these names exactly"
    mk.weights.load({"table[0]": np.float32(1), "table['0']": np.float32(2)}, module)
    assert [float(module.table[key]) for key in (0, "0")] == [1, 2]
    message = refused(ValueError, lambda: mk.weights.plan({"x": np.float32(1), "/x": np.float32(1)}, holding(x=0.0)))
    assert message == "'x' and '/x' both mean x: give one of them"


def test_arrays_of_another_framework_find_their_places() -> None:
    model = network()
    arrays = {
        f"module.net.{layer}.{name}": np.asarray(getattr(model.layers[layer], own)) + 1
        for layer in (0, 1)
        for name, own in (("weight", "w"), ("bias", "b"))
    }
    plan = mk.weights.plan(
        arrays, model, rename={"module/net/*/weight": "layers/*/w", "module/net/*/bias": "layers/*/b"}
    )
    assert [(line.path, line.tensor.path) for line in plan.matched if line.tensor] == [
        ("layers[0].b", "module.net.0.bias"), ("layers[0].w", "module.net.0.weight"),
        ("layers[1].b", "module.net.1.bias"), ("layers[1].w", "module.net.1.weight"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rename", "name", "new"),
    [
        ({"model": ""}, "model.layers.0.w", "layers 0 w"),
        ({"": "model"}, "layers[0].w", "model layers 0 w"),
        ({"model/old": "model/new"}, "model.old.x['y']", "model new x y"),
        ({"**/kernel": "**/w"}, "a.b.kernel", "a b w"),
        ({"**/kernel": "**/w"}, "kernel", "w"),
        ({"block_*/conv*": "blocks/*/convs/*"}, "block_3.conv2.w", "blocks 3 convs 2 w"),
        ({"a/*": "b/*", "a/x": "c"}, "a.x", "b x"),
        ({"a/x": "c", "a/*": "b/*"}, "a.x", "c"),
        ({"a.b": "c"}, "a.bc", None),
        ({"a/*/c": "*/c"}, "a.b", None),
    ],
)
def test_patterns_rename(rename: dict[str, str], name: str, new: str | None) -> None:
    assert Renaming(rename).apply(name) == (None if new is None else tuple(new.split()))


words = st.text("abc_1", min_size=1, max_size=4)


@hypothesis.given(
    parts=st.lists(words, min_size=1, max_size=5), old=st.lists(words, max_size=2), new=st.lists(words, max_size=2)
)
@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
def test_renaming_there_and_back_gives_the_name_again(parts: list[str], old: list[str], new: list[str]) -> None:
    there = Renaming({"/".join([*old, "**", "*", "end"]): "/".join([*new, "**", "*", "end"])})
    back = Renaming({"/".join([*new, "**", "*", "end"]): "/".join([*old, "**", "*", "end"])})
    name = [*old, *parts, "end"]
    moved = there.apply(".".join(name))
    if moved is None:  # the first `end` of the name may come before a part for `*`
        assert "end" in name[:-1]
    else:
        assert moved == (*new, *parts, "end")
        assert back.apply("/".join(moved)) == tuple(name)
    assert Renaming({"**": "**"}).apply(".".join(name)) == tuple(parts_of(".".join(name)))


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            {"x": "y"},
            "rename gives 'x' and 'y' one name, 'y'",
        ),
        (
            {"x": "z", "y": "z"},
            "rename gives 'x' and 'y' one name, 'z'",
        ),
        (
            {"nowhere": "y"},
            "rename 'nowhere' is of no use: no name fits it, or those before it take them. There are: x, y",
        ),
        (
            {"*": "*", "x": "z"},
            "rename 'x' is of no use: no name fits it, or those before it take them. There are: x, y",
        ),
        (
            {"*/x": "**/x"},
            "rename '*/x' to '**/x': what `*` and `**` stand for goes over in order, so that both need the same ones, and "
            "the one has *, the other **",
        ),
        (
            {"*": "x"},
            "rename '*' to 'x': what `*` and `**` stand for goes over in order, so that both need the same ones, and "
            "the one has *, the other none",
        ),
    ],
)
def test_a_rename_that_says_nothing_or_too_much_is_refused(rename: dict[str, str], message: str) -> None:
    arrays = {"x": np.float32(1), "y": np.float32(2)}
    assert refused(ValueError, lambda: mk.weights.plan(arrays, holding(y=0.0), rename=rename)) == message


def test_names_of_a_tie_are_renamed_too(tmp_path: Path) -> None:
    mk.weights.save(tmp_path / "x", {"model": pair(True)})
    module = pair(True)
    plan = mk.weights.load(tmp_path / "x", module, rename={"model": ""})
    assert repr(plan) == "Plan(1 matched, 0 wrong, 0 missing, 0 unexpected)"
    assert json.dumps(mk.weights.read(tmp_path / "x").ties) == '[["model.first", "model.second"]]'
