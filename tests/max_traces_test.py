"""Laws of `max_traces`, and of sentences about traces where explaining is hard: nothing else may fail because of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk
from modulekit.errors import RetraceError

X = np.ones([4, 5], np.float32)


class Scale(mk.Module):
    """Counts its calls in a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 1.0
        self.w = mk.Variable(2.0, name="w")
        self.count = mk.Variable(0, trainable=False, name="count")

    def __call__(self, x: Any) -> Any:
        self.count.assign_add(1)
        return x * self.rate * self.w


def refusal(step: Any, *arguments: Any) -> str:
    with pytest.raises(RetraceError) as raised:
        step(*arguments)
    return str(raised.value)


def test_one_trace_too_many_raises_with_its_reason_and_changes_nothing() -> None:
    scale = Scale()
    step = mk.jit(scale, max_traces=2)
    step(X)
    step(X[:2])
    for _ in range(2):
        assert refusal(step, X[:1]) == (
            "Scale retraced: argument x f32[2,5] → f32[1,5]. This would be trace 3, and max_traces=2"
        )
    assert int(scale.count) == 2
    assert scale.count.version == 2
    assert step.traces == (
        "Scale traced: argument x f32[4,5]",
        "Scale retraced: argument x f32[4,5] → f32[2,5]",
    )
    step(X)
    assert int(scale.count) == 3


def test_a_changed_attribute_counts_and_changing_it_back_goes_on() -> None:
    scale = Scale()
    step = mk.jit(lambda x: scale(x), max_traces=1)
    step(X)
    scale.rate = 3.0
    assert (
        refusal(step, X) == "<lambda> retraced: scale.rate changed 1.0 → 3.0. This would be trace 2, and max_traces=1"
    )
    scale.rate = 1.0
    assert float(step(X)[0, 0]) == 2.0
    assert int(scale.count) == 2


def test_no_trace_at_all_may_be_allowed() -> None:
    scale = Scale()
    step = mk.jit(scale, max_traces=0)
    assert refusal(step, X) == "Scale traced: argument x f32[4,5]. This would be trace 1, and max_traces=0"
    assert step.traces == ()
    assert int(scale.count) == 0


def test_a_refused_trace_of_a_nested_function_changes_nothing() -> None:
    scale = Scale()
    inner = mk.jit(scale, max_traces=1)
    outer = mk.jit(lambda x: inner(inner(x)[:2]))
    assert (
        refusal(outer, X) == "Scale retraced: argument x f32[4,5] → f32[2,5]. This would be trace 2, and max_traces=1"
    )
    assert int(scale.count) == 0
    assert outer.traces == ()


def test_a_training_loop_stays_within_one_trace() -> None:
    net, optimizer = mk.nets.MLP([4, 1]), mk.optimizers.Adam(1e-2)
    step = mk.jit(lambda x, y: optimizer.minimize(lambda: jnp.square(net(x) - y).mean(), net), max_traces=1)
    for index in range(20):
        step(X * index, X[:, :1])
    assert step.traces == ("<lambda> traced: argument x f32[4,5], argument y f32[4,1]",)


def test_lowering_and_running_step_by_step_are_no_traces() -> None:
    step = mk.jit(Scale(), max_traces=0)
    step.lower(X)
    with mk.eager():
        step(X)
    assert step.traces == ()


def test_traces_for_finding_values_that_are_not_finite_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "modulekit")
    step = mk.jit(Scale(), max_traces=1)
    step(X)
    with mk.find_nonfinite():
        step(X)
        step(X[:2])
    step(X)
    assert step.traces == ("Scale traced: argument x f32[4,5]",)
    assert [record.getMessage() for record in caplog.records] == [
        "Scale traced: argument x f32[4,5]",
        "Scale, in find_nonfinite, traced: argument x f32[4,5]",
        "Scale, in find_nonfinite, retraced: argument x f32[4,5] → f32[2,5]",
    ]


def test_a_trace_that_failed_is_none_and_leaves_no_reason() -> None:
    scale = Scale()

    def run(x: Any) -> Any:
        if scale.rate == 5.0:
            raise ValueError("five")
        return scale(x)

    step = mk.jit(run)
    step(X)
    scale.rate = 5.0
    with pytest.raises(ValueError, match="five"):
        step(X)
    scale.rate = 1.0
    step(X[:2])
    assert step.traces == ("run traced: argument x f32[4,5]", "run retraced: argument x f32[4,5] → f32[2,5]")


class Mute:
    """Fails to say what it is."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_values_that_cannot_be_shown_do_not_stop_a_step() -> None:
    scale = Scale()
    scale.note = Mute()
    step = mk.jit(lambda x, note: scale(x))
    mute = "<Mute, which cannot be shown: RuntimeError>"
    step(X, Mute())
    step(X, Mute())
    scale.note = Mute()
    step(X, 1)
    assert step.traces == (
        f"<lambda> traced: argument x f32[4,5], argument note {mute}",
        f"<lambda> retraced: argument note {mute} → another {mute}",
        f"<lambda> retraced: argument note {mute} → i32[] from a Python number",
    )
    scale.note = Mute()
    step(X, 1)
    assert step.traces[3:] == (f"<lambda> retraced: scale.note changed {mute} → another {mute}",)


def test_long_texts_are_cut() -> None:
    scale = Scale()
    step = mk.jit(lambda x, note: scale(x))
    step(X, "a" * 100)
    scale.table = list(range(10_000))
    step(X, "a" * 100)
    assert step.traces == (
        "<lambda> traced: argument x f32[4,5], argument note '" + "a" * 76 + "...",
        "<lambda> retraced: scale.table is new, " + str(list(range(10_000)))[:197] + "...",
    )


def test_a_name_that_has_no_value_yet_does_not_stop_a_step() -> None:
    def make() -> Any:
        step = mk.jit(lambda x: x if len(x) else later)
        step(X)
        later = X
        return step, later

    assert make()[0].traces == ("<lambda> traced: argument x f32[4,5]",)


def test_functions_without_a_signature_are_told_by_position() -> None:
    class Unsigned:
        __signature__ = "none"

        def __call__(self, x: Any, y: Any) -> Any:
            return x + y

    step = mk.jit(Unsigned())
    step(X, X)
    step(X, y=X)
    assert step.traces == (
        "Unsigned traced: argument args[0] f32[4,5], argument args[1] f32[4,5]",
        "Unsigned retraced: argument args[1] f32[4,5] is gone; argument y f32[4,5] is new",
    )


def test_functions_of_jax_and_partials_have_their_names() -> None:
    step = mk.jit(jax.nn.relu)
    step(X)
    assert step.traces == ("relu traced: argument x f32[4,5]",)
