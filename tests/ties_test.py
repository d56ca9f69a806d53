"""Laws of ties: every path to a shared variable is known, and nothing unties or mixes them up in silence."""

import copy
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk
import scenarios
from modulekit.errors import CheckpointError, TieWarning
from scenarios.base.saving import check_fits

X = jnp.ones([2, 5])


class Pair(mk.Module):
    """A layer and its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = mk.Linear(3)
        self.decode = self.encode.transpose()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decode(self.encode(x))


class Box(mk.Module):
    """Holds what it is given."""

    def __init__(self, name: str | None = None, **parts: Any) -> None:
        super().__init__(name=name)
        for attribute, part in parts.items():
            setattr(self, attribute, part)


def number(value: float = 0.0, name: str = "v") -> mk.Variable:
    return mk.Variable(value, name=name)


def linear(name: str = "linear") -> mk.Linear:
    layer = mk.Linear(2, with_bias=False, name=name)
    layer(X)
    return layer


def texts(module: mk.Module) -> list[str]:
    return [str(tie) for tie in module.ties()]


def only_warning(caught: Any) -> warnings.WarningMessage:
    (found,) = [w for w in caught if issubclass(w.category, TieWarning)]
    return found


# What is tied.


def test_a_shared_variable_is_a_tie_with_all_its_paths() -> None:
    v, w = number(), number(name="w")
    module = Box(b=v, a=v, list=[w, (v,)], table={"k": w, "z": number()})
    first, second = module.ties()
    assert (first.variable, first.paths, first.views) == (v, ("a", "b", "list[1][0]"), {})
    assert (second.variable, second.paths) == (w, ("list[0]", "table['k']"))
    assert texts(module) == ["a = b = list[1][0]", "list[0] = table['k']"]
    assert Box(a=number(), b=[number()]).ties() == mk.Linear(2).ties() == ()


def test_what_a_shared_module_holds_is_tied_under_each_of_its_paths() -> None:
    layer = linear()
    assert texts(Box(first=layer, second=layer, more=[layer])) == ["first.w = more[0].w = second.w"]
    inner = Box(b=number(), c=layer)
    assert texts(Box(x=inner, y=(inner,))) == ["x.b = y[0].b", "x.c.w = y[0].c.w"]


def test_a_shared_module_inside_a_shared_module_is_found_under_each_path_of_both() -> None:
    layer, twice = linear(), number()
    inner = Box(part=layer, p=twice, q=twice)
    tied, weight = Box(a=inner, b=inner, c=layer).ties()
    assert set(weight.paths) == {"c.w", "a.part.w", "b.part.w"} and weight.paths[0] == "c.w"
    assert set(tied.paths) == {"a.p", "a.q", "b.p", "b.q"} and tied.paths[0] == "a.p"
    module = Box(a=inner, b=inner, c=layer)
    assert module.freeze("b/part") == ("c.w",)


def test_a_transposed_layer_uses_the_variable_transposed() -> None:
    pair = Pair()
    pair(X)
    (tie,) = pair.ties()
    assert str(tie) == "decode.w (transposed) = encode.w"
    assert tie.views == {"decode.w": "transposed"} and tie.variable is pair.encode.w
    assert texts(mk.Sequential([pair, pair.decode])) == [
        "layers[0].encode.w = layers[1].w (transposed) = layers[0].decode.w (transposed)",
        "layers[1].b = layers[0].decode.b",
    ]
    assert texts(pair.decode) == []


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_has_ties_of_its_own(copied: Any) -> None:
    pair = Pair()
    pair(X)
    other = copied(pair)
    assert texts(other) == texts(pair) and other.ties()[0].variable is not pair.encode.w
    with pytest.warns(TieWarning, match=r"it is also 'w' of TransposedLinear"):
        other.encode.w = number()


def test_a_cycle_is_no_tie() -> None:
    child, sibling = Box("child", w=number()), Box("sibling")
    parent = Box("parent", child=child, sibling=sibling)
    child.parent = parent
    assert texts(parent) == []
    sibling.beside = child
    assert texts(parent) == ["child.w = sibling.beside.w"]
    ring = Box("ring", w=number())
    ring.itself = ring
    assert texts(ring) == []


def test_variables_by_name_are_tied_where_two_modules_hold_the_store() -> None:
    store = mk.VariableStore()
    with store, mk.variable_scope("layer", reuse=mk.AUTO_REUSE):
        w = mk.get_variable("w", [2])
        assert mk.get_variable("w", [2]) is w
    assert texts(Box(store=store)) == []
    assert texts(Box(left=Box(store=store), right=Box(store=store), w=w)) == [
        "w = left.store.by_name['layer/w'] = right.store.by_name['layer/w']"
    ]


def test_many_modules_that_know_each_other_are_walked_in_no_time() -> None:
    peers = [Box(f"peer_{index}", w=number()) for index in range(9)]
    for peer in peers:
        peer.peers = peers
    (*_, last) = Box(agents=peers).ties()
    assert last.paths[0] == "agents[8].w" and len(last.paths) < 9**2
    assert {f"agents[{index}].peers[8].w" for index in range(8)} <= set(last.paths)


# Replacing an attribute.


def test_an_assignment_that_unties_warns_at_its_line_and_says_how_to_mean_it() -> None:
    pair = Pair()
    pair(X)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pair.encode.w = number()  # LINE
    found = only_warning(caught)
    assert str(found.message) == (
        "variable 'pair/linear/w' is tied: it is also 'w' of TransposedLinear(linear=Linear(output_size=3), "
        "name='linear_transpose'). Replacing 'w' of Linear(output_size=3) unties them. To give both a new value, assign it "
        "to the variable; to untie them on purpose without this warning, delete the attribute first"
    )
    assert found.filename == __file__
    assert Path(__file__).read_text().splitlines()[found.lineno - 1].endswith("# LINE")


def untying() -> dict[str, Any]:
    """Returns ways to untie: a module, the attribute that is replaced, and where the variable is as well."""
    pair, layer, v = Pair(), linear(), number()
    pair(X)
    child = Box("child", w=number())
    parent = Box("parent", child=child, beside=Box("beside", w=child.w))
    child.parent = parent
    outer = Box(inner=Box(deep=Box(w=v)), other=Box("other", mine=v))
    return {
        "a layer": (pair, "encode", "'w' of TransposedLinear"),
        "its transpose": (pair, "decode", "'w' of Linear"),
        "a shared module": (Box(first=layer, second=layer), "second", "'first.w' of Box"),
        "a shared module in a list": (Box(first=layer, layers=[layer]), "first", r"'layers\[0\].w' of Box"),
        "two attributes": (Box(a=v, b=v), "a", "'b' of Box"),
        "deep inside": (outer, "inner", "'mine' of Box"),
        "a child that knows its parent": (parent, "child", "'w' of Box"),
    }


@pytest.mark.parametrize("case", untying())
def test_each_way_to_untie_warns_once_and_del_first_does_not(case: str) -> None:
    module, attribute, place = untying()[case]
    with pytest.warns(TieWarning, match=f"is tied: it is also {place}") as caught:
        setattr(module, attribute, linear())
    only_warning(caught)
    module, attribute, _ = untying()[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        delattr(module, attribute)
        setattr(module, attribute, linear())


def test_an_assignment_that_unties_nothing_does_not_warn() -> None:
    pair, layer = Pair(), linear()
    pair(X)
    root = Box("root", shared=layer, outside=number())
    user = Box("user", mine=root.outside)
    child = Box("child", w=number())
    child.parent = root
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root.child = child
        root.child = Box("other")  # the old one knows the root, and does not take `outside` away
        root.shared = mk.Sequential([layer])  # the same layer, further inside
        pair.encode = pair.encode
        pair.decode.b = number()  # tied with nothing
        lone = linear()
        lone.w = number()
        lone.w = 3
        del user
        root.outside = number()  # the other holder is gone
    assert texts(pair) == ["decode.w (transposed) = encode.w"]


def test_assigning_the_same_variable_again_and_again_costs_nothing() -> None:
    box, v, other = Box(), number(), number()
    for _ in range(50):
        box.w = v
        box.w = other
    box.w = v
    assert [(holder is box, name) for holder, name in v.holders()] == [(True, "w")]
    assert len(v._holders) == 1


# Values by path.


def fresh() -> Pair:
    mk.seed(0)
    pair = Pair()
    pair(X)
    return pair


def values(**changes: Any) -> dict[str, Any]:
    right = {"encode.b": np.full([3], 2.0, np.float32), "encode.w": np.full([5, 3], 3.0, np.float32)}
    return right | {"decode.b": np.full([5], 4.0, np.float32)} | changes


def without(name: str) -> dict[str, Any]:
    return {path: value for path, value in values().items() if path != name}


def test_assign_gives_every_variable_its_value_a_tied_one_under_either_path() -> None:
    w = np.arange(15, dtype=np.float32).reshape(5, 3)
    both = values(**{"encode.w": w, "decode.w": w.copy()})
    for given in (values(**{"encode.w": w}), without("encode.w") | {"decode.w": w}, both):
        pair = fresh()
        pair.assign(given)
        np.testing.assert_array_equal(pair.encode.w.numpy(), w)
        assert pair.decode.b.numpy().tolist() == [4.0] * 5 and pair.decode.w is pair.encode.w
    w[:] = 0
    assert pair.encode.w.numpy().any()
    box = Box(rate=number(), table=mk.Variable(jnp.zeros([2]), name="t"))
    box.assign({"rate": 0.5, "table": [1.0, 2.0]})
    assert float(box.rate) == 0.5 and box.table.numpy().tolist() == [1.0, 2.0]


WRONG = {
    "missing": (without("encode.b"), "missing encode.b"),
    "a tied one missing": (without("encode.w"), "missing decode.w"),
    "unexpected": (values(**{"encode.v": 1.0}), "unexpected encode.v"),
    "shape": (
        values(**{"encode.w": np.zeros([3, 5], np.float32)}),
        "encode.w has shape [3, 5], the variable [5, 3]",
    ),
    "dtype": (
        values(**{"decode.b": np.zeros([5])}),
        "decode.b has dtype float64, the variable float32: convert it, as in array.astype('float32')",
    ),
    "tied apart": (
        values(**{"decode.w": np.zeros([5, 3], np.float32)}),
        "encode.w and decode.w are tied, one variable, and take one value",
    ),
    "several": (
        without("decode.b") | {"encode.b": np.zeros([2], np.float32), "x": 1},
        "encode.b has shape [2], the variable [3]; unexpected x; missing decode.b",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_do_not_fit_are_told_by_path_and_none_is_assigned(case: str) -> None:
    given, problems = WRONG[case]
    pair = fresh()
    before = {path: v.numpy() for path, v in pair.paths().items()}
    with pytest.raises(ValueError) as raised:
        pair.assign(given)
    assert str(raised.value) == f"these values do not fit Pair(): {problems}. Nothing has changed"
    for path, v in pair.paths().items():
        np.testing.assert_array_equal(v.numpy(), before[path])
        assert v.version == 0


@pytest.mark.parametrize("wrong", [[1, 2], [None, 2], [1j, 2j]])
def test_a_value_that_no_variable_can_take_leaves_the_others_alone_too(wrong: Any) -> None:
    box = Box(a=number(), b=mk.Variable(jnp.zeros([2]), name="b"), c=number())
    with pytest.raises((ValueError, TypeError)):
        box.assign({"a": 1.0, "b": wrong, "c": 1.0})
    assert float(box.a) == float(box.c) == 0.0


def test_nine_problems_are_eight_and_one_more() -> None:
    text = "; ".join(f"unexpected x{index}" for index in range(8))
    with pytest.raises(
        ValueError, match=f"^{re.escape(f'these values do not fit Box(): {text}; and 1 more. Nothing')}"
    ):
        Box().assign({f"x{index}": 0.0 for index in range(9)})


# Saved states.


class Three(mk.Module):
    """Two layers, and a third that may be one of them."""

    def __init__(self, tied_to: str | None) -> None:
        super().__init__()
        self.a = mk.Linear(2, with_bias=False, name="a")
        self.b = mk.Linear(2, with_bias=False, name="b")
        self.c = getattr(self, tied_to) if tied_to else mk.Linear(2, with_bias=False, name="c")

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.a(x) + self.b(x) + self.c(x)


CHANGES = {
    ("a", None): "model.c.w was tied to model.a.w, and is not tied now",
    (None, "a"): "model.c.w is tied to model.a.w, and was not tied when saved",
    ("a", "b"): "model.c.w was tied to model.a.w, and is tied to model.b.w now",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change[0]} to {change[1]}")
def test_a_state_of_other_ties_is_refused_and_says_which(change: tuple[Any, Any], tmp_path: Path) -> None:
    def train(module: Three, steps: int) -> None:
        data = (np.ones([4, 5], np.float32), np.zeros([4, 2], np.float32))
        scenario = scenarios.Supervised(steps, batch_size=4, save_dir=tmp_path, progress=False)
        scenario(module, mk.optimizers.SGD(0.1), mk.losses.squared_error, data=data)

    train(Three(change[0]), 2)
    module = Three(change[1])
    module(X)
    before = module.a.w.numpy()
    with pytest.raises(CheckpointError) as raised:
        train(module, 4)
    assert str(raised.value) == (
        f"the state in {tmp_path / 'states'} does not fit these parts: {CHANGES[change]}. Nothing was assigned"
    )
    np.testing.assert_array_equal(module.a.w.numpy(), before)
    train(Three(change[0]), 4)


def test_a_state_fits_where_a_path_of_a_tied_variable_came_or_went() -> None:
    w, array = number(), np.zeros([], np.float32)
    check_fits({"m.a": w}, {"m.a": array}, "here", {"m.b": "m.a"}, {})
    check_fits({"m.a": w}, {"m.a": array}, "here", {}, {"m.b": "m.a"})
    text = "the state in here does not fit these parts: missing m.c; unexpected m.a. Nothing was assigned"
    with pytest.raises(CheckpointError, match=f"^{re.escape(text)}$"):
        check_fits({"m.c": w}, {"m.a": array}, "here", {}, {})
