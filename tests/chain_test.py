"""Laws of the chain behind an error: which modules it passed through, what each was called with, and where it was built."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diagnostics import chain_of, notes_of, origin_of

import modulekit as mk

X = np.ones([4, 5], np.float32)
WRONG = np.ones([4, 7], np.float32)

Function = Callable[[Any], Any]
WAYS: dict[str, Callable[[Function, Any], Any]] = {
    "eager": lambda f, x: f(x),
    "mk.eager": lambda f, x: eagerly(mk.jit(f), x),
    "jit": lambda f, x: mk.jit(f)(x),
    "jit_in_jit": lambda f, x: mk.jit(lambda x: mk.jit(f)(x))(x),
    "vmap": lambda f, x: mk.vmap(f)(x[None]),
    "vmap_in_jit": lambda f, x: mk.jit(mk.vmap(f))(x[None]),
    "grad": lambda f, x: mk.grad(lambda x: f(x).sum())(x),
    "grad_in_jit": lambda f, x: mk.jit(mk.grad(lambda x: f(x).sum()))(x),
    "scan": lambda f, x: mk.scan(lambda carry, x: (carry, f(x)), None, x[None]),
    "scan_in_jit": lambda f, x: mk.jit(lambda x: mk.scan(lambda carry, x: (carry, f(x)), None, x))(x[None]),
    "cond": lambda f, x: mk.cond(True, f, f, x),
    "while_loop": lambda f, x: mk.while_loop(lambda i: i < 1, lambda i: (f(x), i + 1)[1], 0),
    "remat": lambda f, x: mk.remat(f)(x),
    "build": lambda f, x: mk.build(f, list(x.shape)),
    "plain_grad": lambda f, x: jax.grad(lambda x: f(x).sum())(x),
    "find_nonfinite": lambda f, x: watched(mk.jit(f), x),
}


def eagerly(f: Function, x: Any) -> Any:
    with mk.eager():
        return f(x)


def watched(f: Function, x: Any) -> Any:
    with mk.find_nonfinite():
        return f(x)


def place(marker: str) -> str:
    return str(origin_of(__file__, marker))


class Affine(mk.Module):
    """A user's layer: the error is JAX's own."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.size = size

    @mk.once
    def _initialize(self, x: Any) -> None:
        self.w = mk.Variable(jnp.ones([x.shape[-1], self.size]), name="w")

    def __call__(self, x: Any) -> Any:
        self._initialize(x)
        return x @ self.w


LAYERS: dict[str, Callable[[], Any]] = {"Linear(output_size=3)": lambda: mk.Linear(3), "Affine()": Affine}


class Net(mk.Module):
    """Layers in an attribute, a list and a dict, of which one call uses one."""

    def __init__(self, layer: str, which: str) -> None:
        super().__init__()
        make = LAYERS[layer]
        self.which = which
        self.stem = make()
        self.blocks = [make(), make()]
        self.heads = {"left": [make()]}

    def __call__(self, x: Any) -> Any:
        if self.which == "stem":
            return self.stem(x)  # calls stem
        if self.which == "block":
            return self.blocks[1](x)  # calls block
        return self.heads["left"][0](x)  # calls head


class Outer(mk.Module):
    """A net in a Sequential of the library."""

    def __init__(self, layer: str, which: str) -> None:
        super().__init__()
        self.body = mk.Sequential([Net(layer, which), jnp.tanh])

    def __call__(self, x: Any) -> Any:
        return self.body(x)


class Raising(mk.Module):
    """Raises what it is told to."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_way_to_the_failing_layer_is_the_same_under_every_transform(way: str, layer: str) -> None:
    outer = Outer(layer, "block")
    outer(X)
    net = f"Net(layer='{layer}', which='block')"
    assert chain_of(lambda: WAYS[way](outer, WRONG)) == [
        f"  in body.layers[0].blocks[1] = {layer}: called with float32[4,7]; built at {place('calls block')}, "
        "for float32[4,5]",
        f"  in body.layers[0] = {net}: called with float32[4,7]",
        f"  in body = Sequential(layers=[{net}, tanh]): called with float32[4,7]",
        f"  in Outer(layer='{layer}', which='block'): called with float32[4,7]",
    ]


@pytest.mark.parametrize(("which", "path"), [("stem", "stem"), ("block", "blocks[1]"), ("head", "heads['left'][0]")])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_is_named_by_its_attribute_list_or_dict(layer: str, which: str, path: str) -> None:
    net = Net(layer, which)
    net(X)
    assert chain_of(lambda: net(WRONG)) == [
        f"  in {path} = {layer}: called with float32[4,7]; built at {place(f'calls {which}')}, for float32[4,5]",
        f"  in Net(layer='{layer}', which='{which}'): called with float32[4,7]",
    ]


@pytest.mark.parametrize("way", WAYS)
def test_the_message_itself_is_not_changed(way: str) -> None:
    affine = Affine()
    affine(X)
    with pytest.raises(TypeError) as raised:
        WAYS[way](affine, WRONG)
    assert str(raised.value) == "dot_general requires contracting dimensions to have the same shape, got (7,) and (5,)."


@pytest.mark.parametrize("way", WAYS)
def test_a_layer_that_was_never_built_says_nothing_of_a_first_call(way: str) -> None:
    net = mk.Sequential([mk.Linear(3)])
    assert chain_of(lambda: WAYS[way](net, np.ones([4], np.float32))) == [
        "  in layers[0] = Linear(output_size=3): called with float32[4]",
        "  in Sequential(layers=[Linear(output_size=3)]): called with float32[4]",
    ]


def test_a_body_under_once_that_raised_has_built_nothing() -> None:
    affine = Affine(-1)
    (line,) = chain_of(lambda: affine(X))
    assert line == "  in Affine(size=-1): called with float32[4,5]"


@pytest.mark.parametrize("way", ["vmap", "vmap_in_jit", "scan", "scan_in_jit"])
def test_a_layer_built_in_lanes_or_steps_was_built_for_the_shape_of_one(way: str) -> None:
    affine = Affine()
    WAYS[way](lambda x: affine(x), X)  # builds a lane
    file, line = origin_of(__file__, "builds a lane")
    assert chain_of(lambda: affine(WRONG)) == [
        f"  in Affine(): called with float32[4,7]; built at {file}:{line}, for float32[4,5]"
    ]


def test_a_shared_layer_is_named_by_its_first_path_and_was_built_where_it_was_first_called() -> None:
    class Pair(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = Affine(5)
            self.second = self.first

        def __call__(self, x: Any) -> Any:
            x = self.second(x)  # calls the shared one
            return self.first(x[:, 1:])

    built = f"built at {place('calls the shared one')}, for float32[4,5]"
    assert chain_of(lambda: Pair()(X)) == [
        f"  in first = Affine(size=5): called with float32[4,4]; {built}",
        "  in Pair(): called with float32[4,5]",
    ]


def test_variables_made_without_once_tell_the_line_that_made_the_first() -> None:
    class ByHand(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [{"w": mk.Variable(jnp.ones([5, 2]), name="w")}]  # makes w
            self.a = mk.Variable(1.0, name="a")

        def __call__(self, x: Any) -> Any:
            return x @ self.parts[0]["w"]

    assert chain_of(lambda: ByHand()(WRONG)) == [
        f"  in ByHand(): called with float32[4,7]; built at {place('makes w')}"
    ]


def test_an_attribute_with_an_origin_of_its_own_is_no_variable() -> None:
    class Image:
        @property
        def origin(self) -> Any:
            raise RuntimeError("not loaded")

    holder = Raising(ValueError())
    holder.image = Image()
    holder.inner = Raising(ValueError())
    holder.inner.origin = (0, 0)
    assert chain_of(holder) == ["  in Raising(error=ValueError()): called with nothing"]


def test_methods_of_one_module_that_call_each_other_are_one_line() -> None:
    class Three(mk.Module):
        def __call__(self, x: Any) -> Any:
            with mk.name_scope("scope"):
                return self.second(x, 2)

        def second(self, x: Any, n: int) -> Any:
            return self.third([x] * n)

        def third(self, xs: Any) -> Any:
            with self.name_scope:
                return xs[0] @ np.ones([3, 3])

    for run in (Three(), mk.jit(Three())):
        assert chain_of(lambda run=run: run(X)) == ["  in Three(): called with float32[4,5]"]
    assert chain_of(lambda: Three().second(X, n=2)) == ["  in Three(): called with float32[4,5], n=2"]


def test_an_optimizer_around_does_not_hide_the_paths_of_the_model() -> None:
    net, optimizer = Net("Affine()", "head"), mk.optimizers.SGD(0.1)
    net(X)

    def loss() -> Any:
        return net(WRONG).sum()

    for run in (lambda: optimizer.minimize(loss, net), mk.jit(lambda: optimizer.minimize(loss, net))):
        assert chain_of(run) == [
            f"  in heads['left'][0] = Affine(): called with float32[4,7]; built at {place('calls head')}, for float32[4,5]",
            "  in Net(layer='Affine()', which='head'): called with float32[4,7]",
            "  in SGD(learning_rate=0.1): called with loss, Net(layer='Affine()', which='head')",
        ]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_keep_where_they_were_built(duplicate: Callable[[Any], Any]) -> None:
    net = Net("Affine()", "stem")
    net(X)
    assert chain_of(lambda: duplicate(net)(WRONG)) == chain_of(lambda: net(WRONG))
    assert chain_of(lambda: net(WRONG))[0] == (
        f"  in stem = Affine(): called with float32[4,7]; built at {place('calls stem')}, for float32[4,5]"
    )


@pytest.mark.parametrize(
    "error", [KeyError("k"), AttributeError("a"), RuntimeError("r"), IndexError(), StopIteration()]
)
def test_errors_of_other_kinds_get_no_notes(error: Exception) -> None:
    raising = Raising(error)
    for run in (raising, mk.jit(raising), lambda: mk.remat(raising)()):
        assert chain_of(run) == []


@pytest.mark.parametrize("error", [TypeError("t"), ValueError("v"), FloatingPointError("f"), ZeroDivisionError()])
def test_an_error_stays_the_same_object(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        mk.jit(Raising(error))(X)
    assert raised.value is error
    assert error.__notes__[0] == f"  in Raising(error={error!r}): called with float32[4,5]"


def test_abandoned_attempts_of_a_trace_leave_no_notes() -> None:
    seen: list[BaseException] = []

    class Watching(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Affine()

        def __call__(self, x: Any) -> Any:
            try:
                return jax.checkpoint(self.inner)(x)  # reads a variable, which ends the first attempt
            except BaseException as error:
                seen.append(error)
                raise

    watching = Watching()
    mk.jit(watching)(X)
    assert seen
    for error in seen:
        assert notes_of(error) == []
    del seen[:]
    assert len(chain_of(lambda: mk.jit(watching)(WRONG))) == 2


def test_an_error_that_a_module_catches_and_handles_is_not_seen() -> None:
    class Trying(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Affine()

        def __call__(self, x: Any) -> Any:
            try:
                return self.inner(x)
            except TypeError:
                raise KeyError("narrow") from None

    trying = Trying()
    trying(X)
    assert chain_of(lambda: trying(WRONG)) == []


@dataclasses.dataclass
class Plain(mk.Module):
    """Has an `__eq__`, and so no hash."""

    size: int
    inner: Any

    def __call__(self, x: Any) -> Any:
        return self.inner(x)  # calls the inner one


def test_modules_that_are_dataclasses_without_a_hash_are_told_like_others() -> None:
    plain = Plain(2, Plain(3, Affine()))
    with pytest.raises(TypeError):
        hash(plain)
    plain(X)
    for run in (plain, mk.jit(plain)):
        assert chain_of(lambda run=run: run(WRONG)) == [
            f"  in inner.inner = Affine(): called with float32[4,7]; built at {place('calls the inner one')}, "
            "for float32[4,5]",
            "  in inner = Plain(size=3, inner=Affine()): called with float32[4,7]",
            "  in Plain(size=2, inner=Plain(size=3, inner=Affine())): called with float32[4,7]",
        ]


def test_an_error_in_the_constructor_of_a_part_is_told_from_the_module_that_makes_it() -> None:
    class Making(mk.Module):
        def __call__(self, x: Any) -> Any:
            return mk.Linear(0)(x)

    for _ in range(2):
        assert chain_of(lambda: Making()(X)) == ["  in Making(): called with float32[4,5]"]
    assert chain_of(lambda: Affine(3)(np.float32(1))) == []
