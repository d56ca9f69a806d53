"""Laws of `once`: one run per instance, remembered with the instance."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from catalogue import Affine, X

import modulekit as mk
from modulekit.errors import UnsettledTraceError

HERE = Path(__file__).parent


class Parent:
    """Counts runs; no module."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    @mk.once
    def start(self, word: str = "parent") -> None:
        """Notes a run."""
        self.runs.append(word)


class Child(Parent):
    @mk.once
    def start(self, word: str = "child") -> None:
        super().start()
        self.runs.append(word)


def test_a_method_runs_on_the_first_call_of_each_instance() -> None:
    a, b = Parent(), Parent()
    for _ in range(3):
        a.start("a")
    b.start("b")
    assert (a.runs, b.runs) == (["a"], ["b"])


def test_a_childs_method_does_not_stand_for_its_parents() -> None:
    child = Child()
    child.start()
    child.start()
    assert child.runs == ["parent", "child"]


def test_a_function_runs_once() -> None:
    runs = []

    @mk.once
    def start() -> None:
        runs.append(1)

    start()
    start()
    assert runs == [1]


def test_name_and_documentation_are_those_of_the_method() -> None:
    assert Parent.start.__name__ == "start"
    assert Parent.start.__doc__ == "Notes a run."


def test_a_body_that_raised_has_not_run() -> None:
    class Net(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fails = True

        @mk.once
        def _initialize(self) -> None:
            value = mk.initializers.RandomNormal()([3], jnp.float32)
            if self.fails:
                raise KeyError("no")
            self.w = mk.Variable(value, name="w")

        def __call__(self) -> Any:
            self._initialize()
            return self.w.value

    mk.seed(1)
    expected = _without_failure(Net)()
    mk.seed(1)
    net = Net()
    for run in (net, mk.jit(net), lambda: mk.grad(lambda: net().sum(), net)()):
        with pytest.raises(KeyError):
            run()
    net.fails = False
    assert net().tolist() == expected.tolist()


def _without_failure(kind: type) -> Any:
    net = kind()
    net.fails = False
    return net


def test_a_returned_value_is_refused_and_shown() -> None:
    @mk.once
    def start() -> int:
        return 3

    with pytest.raises(ValueError, match=r"cannot return values.*start returned 3"):
        start()


def test_what_has_run_survives_copies_and_pickles() -> None:
    parent = Parent()
    parent.start()
    for twin in (copy.deepcopy(parent), copy.copy(parent), pickle.loads(pickle.dumps(parent))):
        twin.start("again")
        assert "again" not in twin.runs


def test_what_has_not_run_runs_in_a_copy_of_its_own() -> None:
    affine = Affine(2)
    twin = copy.deepcopy(affine)
    affine(X)
    assert not hasattr(twin, "w")
    twin(X)
    assert twin.w is not affine.w


def test_weights_are_not_drawn_again_in_another_process(tmp_path: Path) -> None:
    affine = Affine(2)
    affine(X)
    before = affine.w.numpy()
    (tmp_path / "module").write_bytes(pickle.dumps(affine))
    script = HERE / "subprocesses" / "call_again.py"
    environment = {"PYTHONPATH": f"{HERE}:{HERE.parent}", "JAX_PLATFORMS": "cpu", "PATH": ""}
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    back = pickle.loads((tmp_path / "back").read_bytes())
    assert (back.w.numpy() == before).all()
    assert back.b.numpy().tolist() == [1.0, 1.0]


CONTEXTS: dict[str, Any] = {
    "eager": lambda f: f(X),
    "mk.jit": lambda f: mk.jit(f)(X),
    "mk.grad": lambda f: mk.value_and_grad(lambda: f(X).sum(), [mk.Variable(1.0)])(),
    "mk.scan": lambda f: mk.scan(lambda c, x: (c, f(x)), None, X[None]),
    "mk.while_loop": lambda f: mk.while_loop(lambda i: i < 1, lambda i: i + f(X).astype(jnp.int32).shape[0], 0),
    "mk.build": lambda f: mk.build(f, X),
    "jax.vmap": lambda f: jax.vmap(f)(X[None]),
    "jax.grad": lambda f: jax.grad(lambda x: f(x).sum())(X),
    "jax.eval_shape": lambda f: jax.eval_shape(lambda x: (f._initialize(x), x)[1], X),
    "jax.jit": lambda f: jax.jit(lambda x: (f._initialize(x), x)[1])(X),
    "jax.make_jaxpr": lambda f: jax.make_jaxpr(lambda x: (f._initialize(x), x)[1])(X),
    "jax.lax.scan": lambda f: jax.lax.scan(lambda c, x: (c, (f._initialize(x), x)[1]), None, X[None]),
    "jax.checkpoint": lambda f: jax.checkpoint(lambda x: (f._initialize(x), x)[1])(X),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_arrays_made_under_once_are_concrete_and_the_same_in_every_context(name: str) -> None:
    mk.seed(11)
    reference = Affine(2)
    reference(X)
    mk.seed(11)
    affine = Affine(2)
    CONTEXTS[name](affine)
    assert not isinstance(affine.w.value, jax.core.Tracer)
    assert (affine.w.numpy() == reference.w.numpy()).all()


def test_a_function_that_makes_a_module_on_each_call_never_settles_and_is_told_so() -> None:
    def run(x: Any) -> Any:
        return mk.Linear(2)(x)

    for compiled in (lambda: mk.scan(lambda c, x: (c, run(x)), None, X[None]), lambda: mk.jit(run)(X)):
        with pytest.raises(UnsettledTraceError) as raised:
            compiled()
        text = str(raised.value)
        assert "makes new variables each time it runs" in text
        assert "'linear/" in text
        assert f"{__file__}:" in text
        assert "@mk.once" in text
