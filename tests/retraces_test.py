"""Laws of retracing: each trace has a sentence that says why, and where nothing changed there is none."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk

X = np.ones([4, 5], np.float32)
Step = Any


class Net(mk.Module):
    """Depends on plain attributes, a list, a dict, a tuple and a part."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 1.0
        self.activation: Callable[..., Any] = jax.nn.relu
        self.layers: list[Any] = [mk.Linear(5), jnp.tanh]
        self.table = {"a": 1.5, "b": [2.5]}
        self.pair = (1, 2.5)
        self.head = mk.Linear(5)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.activation(self.head(x)) * self.rate * sum(self.pair) * len(self.table)

    def scaled(self, x: Any) -> Any:
        return x * self.rate

    @mk.jit
    def compiled(self, x: Any) -> Any:
        return x * self.rate


def named(*given: Any, **also: Any) -> Any:
    """Returns the first array that it is given."""
    return next(leaf for leaf in jax.tree.leaves((given, also)) if isinstance(leaf, jax.Array))


def step_of(x: Any, mask: Any = None, **options: Any) -> Any:
    return named(x, mask, options)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda step: step(X), "step_of traced: argument x f32[4,5]"),
        (lambda step: step(X, mask=True), "step_of traced: argument x f32[4,5], argument mask True"),
        (lambda step: step(x=jnp.int8(1)), "step_of traced: argument x i8[]"),
        (lambda step: step(1.5), "step_of traced: argument x f32[] from a Python number"),
        (lambda step: step({"a": [X, (X[0], 1)]}, size="s"),
         "step_of traced: argument x['a'][0] f32[4,5], argument x['a'][1][0] f32[5], "
         "argument x['a'][1][1] i32[] from a Python number, argument options['size'] 's'"),
    ],
)  # fmt: skip
def test_the_first_trace_is_told_by_its_arguments(call: Callable[[Step], Any], text: str) -> None:
    step = mk.jit(step_of)
    call(step)
    assert step.traces == (text,)


def test_a_function_without_arguments_says_so() -> None:
    step = mk.jit(lambda: 1)
    step()
    assert step.traces == ("<lambda> traced: no arguments",)


Call = Callable[[Step], Any]
ARGUMENTS: dict[str, tuple[Call, Call]] = {
    "x f32[4,5] → f32[2,5]": (lambda s: s(X), lambda s: s(X[:2])),
    "x f32[4,5] → i32[4,5]": (lambda s: s(X), lambda s: s(X.astype(np.int32))),
    "x f32[4,5] → bf16[4,5]": (lambda s: s(X), lambda s: s(jnp.ones([4, 5], jnp.bfloat16))),
    "x f32[] → f32[] from a Python number": (lambda s: s(np.float32(1)), lambda s: s(1.0)),
    "x i32[] from a Python number → f32[] from a Python number": (lambda s: s(1), lambda s: s(1.0)),
    "mask 'a' → 'b'": (lambda s: s(X, "a"), lambda s: s(X, "b")),
    "mask False → True": (lambda s: s(X, False), lambda s: s(X, True)),
    "mask True → i32[] from a Python number": (lambda s: s(X, True), lambda s: s(X, 1)),
    "mask None → f32[4,5]": (lambda s: s(X, None), lambda s: s(X, X)),
    "mask None is new": (lambda s: s(X), lambda s: s(X, None)),
    "mask f32[4,5] is gone": (lambda s: s(X, X), lambda s: s(X)),
    "options['training'] True is new": (lambda s: s(X), lambda s: s(X, training=True)),
    "options['training'] True is gone": (lambda s: s(X, training=True), lambda s: s(X)),
    "x['a'][1]['b'] f32[4,5] → f32[4,4]": (
        lambda s: s({"a": [X, {"b": X}]}),
        lambda s: s({"a": [X, {"b": X[:, 1:]}]}),
    ),
    "mask [*, *] → (*, *)": (lambda s: s(X, [X, X]), lambda s: s(X, (X, X))),
    "mask [*, []] → [*]": (lambda s: s(X, [X, []]), lambda s: s(X, [X])),
    "mask is passed by name": (lambda s: s(X, X), lambda s: s(X, mask=X)),
    "x is passed by position": (lambda s: s(x=X), lambda s: s(X)),
    "mask tanh → relu": (lambda s: s(X, jnp.tanh), lambda s: s(X, jax.nn.relu)),
    "mask <lambda> → another <lambda>": (lambda s: s(X, lambda: 1), lambda s: s(X, lambda: 1)),
    "mask Net() → another Net()": (lambda s: s(X, Net()), lambda s: s(X, Net())),
}


@pytest.mark.parametrize("reason", ARGUMENTS)
def test_another_form_of_the_arguments_is_the_reason(reason: str) -> None:
    step = mk.jit(step_of)
    for call in (*ARGUMENTS[reason], *ARGUMENTS[reason]):
        call(step)
    if "another" not in reason:  # both are known by now
        assert len(step.traces) == 2
    assert step.traces[1] == f"step_of retraced: argument {reason}"


def test_the_reason_is_the_difference_to_the_most_similar_trace() -> None:
    step = mk.jit(step_of)
    for arguments in ((X, True), (X[:1], False), (X, False), (X[:2], True)):
        step(*arguments)
    assert step.traces[1:] == (
        "step_of retraced: argument x f32[4,5] → f32[1,5]; argument mask True → False",
        "step_of retraced: argument x f32[1,5] → f32[4,5]",
        "step_of retraced: argument x f32[4,5] → f32[2,5]",
    )


def set_attribute(name: str, value: Any) -> Callable[[Net], None]:
    return lambda net: setattr(net, name, value)


CHANGES: dict[str, Callable[[Net], Any]] = {
    "rate changed 1.0 → 0.5": set_attribute("rate", 0.5),
    "rate changed 1.0 → 1": set_attribute("rate", 1),
    "activation changed relu → tanh": set_attribute("activation", jnp.tanh),
    "activation changed relu → <lambda>": set_attribute("activation", lambda x: x),
    "pair changed (1, 2.5) → (1, 3.5)": set_attribute("pair", (1, 3.5)),
    "head changed Linear(output_size=5) → another Linear(output_size=5)": set_attribute("head", mk.Linear(5)),
    "note is new, 'a'": set_attribute("note", "a"),
    "rate is gone; net.scale is new, 1.0": lambda net: (delattr(net, "rate"), set_attribute("scale", 1.0)(net)),
    "layers[1] changed tanh → relu": lambda net: net.layers.__setitem__(1, jax.nn.relu),
    "layers[0] changed Linear(output_size=5) → Linear(output_size=6)": (
        lambda net: net.layers.__setitem__(0, mk.Linear(6))
    ),
    "layers changed from 2 to 3 elements": lambda net: net.layers.append(jnp.tanh),
    "table['a'] changed 1.5 → 2.5": lambda net: net.table.update(a=2.5),
    "table['b'][0] changed 2.5 → 3.5": lambda net: net.table["b"].__setitem__(0, 3.5),
    "table['c'] is new, 0": lambda net: net.table.update(c=0),
    "table['a'] is gone": lambda net: net.table.pop("a"),
    "table['a'] is gone; net.table['c'] is new, 1.5": lambda net: net.table.update(c=net.table.pop("a")),
    "table has its keys in another order": lambda net: net.table.update(a=net.table.pop("a")),
    "head.w.trainable changed True → False": lambda net: setattr(net.head.w, "trainable", False),
    "layers[0].b.frozen changed False → True": lambda net: net.freeze("layers/0/b"),
    "head.output_size changed 5 → 6": lambda net: setattr(net.head, "output_size", 6),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_a_change_of_a_module_is_the_reason(reason: str) -> None:
    net = Net()
    step = mk.jit(lambda x: getattr(net, "rate", 0.0) * jnp.sum(net.head(net.layers[0](x)[:, :5])))
    step(X)
    step(X)
    CHANGES[reason](net)
    step(X)
    step(X)
    assert step.traces == ("<lambda> traced: argument x f32[4,5]", f"<lambda> retraced: net.{reason}")


KEPT: dict[str, Callable[[Net], Any]] = {
    "nothing": lambda net: None,
    "equal number": set_attribute("rate", float("1.0")),
    "equal tuple": set_attribute("pair", (1, float("2.5"))),
    "equal element": lambda net: net.table.update(a=float("1.5"), b=net.table["b"]),
    "equal element of a list": lambda net: net.table["b"].__setitem__(0, float("2.5")),
    "change and back": lambda net: (set_attribute("rate", 2.0)(net), set_attribute("rate", 1.0)(net)),
    "frozen and thawed": lambda net: (net.freeze(), net.thaw()),
    "assigned": lambda net: net.head.w.assign(jnp.zeros([5, 5])),
    "of another module": lambda net: set_attribute("rate", 3.0)(Net()),
}


@pytest.mark.parametrize("change", KEPT)
def test_without_a_change_there_is_no_trace(change: str) -> None:
    net = Net()
    step = mk.jit(lambda x: net(x))
    step(X)
    KEPT[change](net)
    step(X)
    assert step.traces == ("<lambda> traced: argument x f32[4,5]",)


def test_several_reasons_are_told_at_once() -> None:
    net = Net()
    step = mk.jit(lambda x, flag: net(x))
    step(X, True)
    net.rate, net.layers[1] = 2.0, jax.nn.relu
    step(X[:2], True)
    assert step.traces[1] == (
        "<lambda> retraced: net.rate changed 1.0 → 2.0; net.layers[1] changed tanh → relu; argument x f32[4,5] → f32[2,5]"
    )


def test_more_than_eight_are_cut() -> None:
    step = mk.jit(lambda xs: xs)
    step([X] * 8)
    step([X] * 20)
    step([X[:1]] * 20)
    places = [f"argument xs[{index}] f32[4,5]" for index in range(20)]
    assert step.traces == (
        f"<lambda> traced: {', '.join(places[:8])}",
        f"<lambda> retraced: {'; '.join(f'{place} is new' for place in places[8:16])}; and 4 more",
        f"<lambda> retraced: {'; '.join(f'{place} → f32[1,5]' for place in places[:8])}; and 12 more",
    )


def test_a_first_trace_with_many_arguments_is_cut_as_well() -> None:
    step = mk.jit(lambda xs: xs)
    step([X] * 11)
    listed = ", ".join(f"argument xs[{index}] f32[4,5]" for index in range(8))
    assert step.traces == (f"<lambda> traced: {listed}, and 3 more",)


def changed_by(net: Net, step: Step, call: Callable[[], Any]) -> Any:
    """Returns the trace that follows a change of the net's rate."""
    call()
    net.rate = 0.5
    call()
    assert len(step.traces) == 2
    return step.traces[1]


def test_modules_have_the_names_that_the_function_has_for_them() -> None:
    net = Net()
    step = mk.jit(net)
    assert changed_by(net, step, lambda: step(X)) == "Net retraced: self.rate changed 1.0 → 0.5"
    net = Net()
    step = mk.jit(net.scaled)
    assert changed_by(net, step, lambda: step(X)) == "scaled retraced: self.rate changed 1.0 → 0.5"
    net = Net()
    step = mk.jit(lambda x, model: model(x))
    assert changed_by(net, step, lambda: step(X, net)) == "<lambda> retraced: model.rate changed 1.0 → 0.5"
    net = Net()
    step = mk.jit(lambda x, models: models["a"][0](x))
    assert changed_by(net, step, lambda: step(X, {"a": [net]})) == (
        "<lambda> retraced: models['a'][0].rate changed 1.0 → 0.5"
    )
    net = Net()
    step = mk.jit(functools.partial(lambda model, x: model(x), net))
    assert changed_by(net, step, lambda: step(X)) == "<lambda> retraced: model.rate changed 1.0 → 0.5"
    net = Net()
    step = mk.jit(lambda x: mk.remat(lambda: mk.Sequential([net])(x))())
    assert changed_by(net, step, lambda: step(X)) == "<lambda> retraced: net.rate changed 1.0 → 0.5"
    outer = mk.Sequential([Net()])
    step = mk.jit(lambda x: outer(x))
    assert changed_by(outer.layers[0], step, lambda: step(X)) == (
        "<lambda> retraced: outer.layers[0].rate changed 1.0 → 0.5"
    )


GLOBAL = Net()


def test_a_global_that_only_an_inner_function_names_has_its_name() -> None:
    step = mk.jit(lambda x: (lambda: GLOBAL(x))())
    assert changed_by(GLOBAL, step, lambda: step(X)) == "<lambda> retraced: GLOBAL.rate changed 1.0 → 0.5"


def test_a_module_that_the_function_has_no_name_for_is_told_by_what_it_is() -> None:
    held: Mapping[str, Any] = {"net": Net()}
    step = mk.jit(lambda x: held["net"](x))
    assert changed_by(held["net"], step, lambda: step(X)) == "<lambda> retraced: Net().rate changed 1.0 → 0.5"


def test_a_compiled_method_tells_of_self() -> None:
    first, second = Net(), Net()
    for _ in range(2):
        first.compiled(X)
        second.compiled(X)
    first.rate = 0.25
    first.compiled(X)
    assert first.compiled.traces == (
        "compiled traced: argument self Net(), argument x f32[4,5]",
        "compiled retraced: argument self Net() → another Net()",
        "compiled retraced: self.rate changed 1.0 → 0.25",
    )
    assert "stablehlo.multiply" in first.compiled.lower(X).as_text()


def test_an_optimizers_learning_rate_is_told() -> None:
    net, optimizer = mk.Linear(2), mk.optimizers.Adam(1e-2)
    step = mk.jit(lambda x: optimizer.minimize(lambda: jnp.square(net(x)).mean(), net))
    for _ in range(20):
        step(X)
    assert step.traces == ("<lambda> traced: argument x f32[4,5]",)
    optimizer.learning_rate = 1e-3
    step(X)
    assert step.traces[1:] == ("<lambda> retraced: optimizer.learning_rate changed 0.01 → 0.001",)
    net.freeze("b")
    step(X)
    assert step.traces[2:] == ("<lambda> retraced: net.b.frozen changed False → True",)


def test_a_nested_function_has_sentences_of_its_own() -> None:
    net = Net()
    inner = mk.jit(lambda y: net(y))
    outer = mk.jit(lambda x: inner(x) + inner(x[:2]).sum() + inner(x))
    outer(X)
    outer(X)
    inner(X)
    net.rate = 0.5
    outer(X)
    assert outer.traces == (
        "<lambda> traced: argument x f32[4,5]",
        "<lambda> retraced: Net().rate changed 1.0 → 0.5",
    )
    assert inner.traces == (
        "<lambda> traced: argument y f32[4,5]",
        "<lambda> retraced: argument y f32[4,5] → f32[2,5]",
        "<lambda> retraced: net.rate changed 1.0 → 0.5",
        "<lambda> retraced: net.rate changed 1.0 → 0.5",
    )


def test_a_change_is_the_reason_for_every_form_that_is_traced_again() -> None:
    net = Net()
    step = mk.jit(lambda x: net(x))
    step(X)
    step(X[:2])
    net.rate = 0.5
    for count in (2, 4, 1, 2, 4):
        step(X[:count])
    assert step.traces[2:] == (
        "<lambda> retraced: net.rate changed 1.0 → 0.5",
        "<lambda> retraced: net.rate changed 1.0 → 0.5",
        "<lambda> retraced: argument x f32[4,5] → f32[1,5]",
    )


def test_variables_that_only_another_form_uses_are_a_reason() -> None:
    bias = mk.Variable(1.0, name="bias")
    step = mk.jit(lambda x: x + bias if len(x) == 2 else x)
    for _ in range(2):
        step(X)
        step(X[:2])
    assert step.traces == (
        "<lambda> traced: argument x f32[4,5]",
        "<lambda> retraced: argument x f32[4,5] → f32[2,5]",
        "<lambda> retraced: a later call has used more variables",
    )


def test_the_log_has_the_same_sentences(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "modulekit")
    step = mk.jit(step_of)
    step(X)
    step(X, "100% %s")
    assert [record.getMessage() for record in caplog.records] == list(step.traces)
    assert {(record.name, record.levelno) for record in caplog.records} == {("modulekit", logging.INFO)}
    assert step.traces[1] == "step_of retraced: argument mask '100% %s' is new"
