"""Laws of sharing: by identity, and by name with `variable_scope` and `get_variable`."""

import copy
import inspect
import pickle
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ByName, SharedTwice, TiedPair, X, affine_by_name

import modulekit as mk


@pytest.fixture(autouse=True)
def store() -> Any:
    """Each test has a store of its own."""
    with mk.VariableStore() as store:
        yield store


def test_the_first_request_makes_the_variable_under_its_full_name(store: Any) -> None:
    with mk.variable_scope("net"), mk.variable_scope("layer/one"):
        w = mk.get_variable("w", [2, 3], trainable=False)
    assert (w.name, w.shape, w.trainable) == ("net/layer/one/w", (2, 3), False)
    assert list(store.by_name) == ["net/layer/one/w"]


def test_a_second_request_without_reuse_gives_name_place_and_remedy() -> None:
    line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
    mk.get_variable("w", [2])
    with pytest.raises(ValueError, match="already exists") as raised:
        mk.get_variable("w", [2])
    text = str(raised.value)
    assert "'w'" in text
    assert f"{__file__}:{line}" in text
    assert "reuse=True" in text
    assert "reuse=mk.AUTO_REUSE" in text


def test_reusing_what_does_not_exist_gives_name_remedy_and_what_there_is() -> None:
    with mk.variable_scope("net"):
        mk.get_variable("w", [2])
    with mk.variable_scope("net", reuse=True), pytest.raises(ValueError, match="does not exist") as raised:
        mk.get_variable("v", [2])
    for part in ("'net/v'", "mk.AUTO_REUSE", "['net/w']"):
        assert part in str(raised.value)


def test_reuse_returns_the_same_variable() -> None:
    with mk.variable_scope("net"):
        w = mk.get_variable("w", [2])
    with mk.variable_scope("net", reuse=True):
        assert mk.get_variable("w") is w
        assert mk.get_variable("w", [2]) is w


def test_auto_reuse_makes_what_is_missing_and_returns_what_is_there() -> None:
    found = []
    for _ in range(2):
        with mk.variable_scope("net", reuse=mk.AUTO_REUSE):
            found.append(mk.get_variable("w", [2]))
    assert found[0] is found[1]
    assert repr(mk.AUTO_REUSE) == "mk.AUTO_REUSE"


def test_reuse_is_inherited_by_inner_scopes_and_ends_with_its_scope() -> None:
    with mk.variable_scope("net"), mk.variable_scope("inner"):
        w = mk.get_variable("w", [2])
    with mk.variable_scope("net", reuse=True):
        with mk.variable_scope("inner"):
            assert mk.get_variable("w") is w
        with mk.variable_scope("inner", reuse=False):
            assert mk.get_variable("w") is w
    with mk.variable_scope("net"), mk.variable_scope("inner"), pytest.raises(ValueError, match="already exists"):
        mk.get_variable("w", [2])


def test_reuse_variables_reuses_from_here_on() -> None:
    with mk.variable_scope("net") as scope:
        w = mk.get_variable("w", [2])
        scope.reuse_variables()
        assert mk.get_variable("w") is w
        assert mk.get_variable_scope() is scope
        with pytest.raises(ValueError, match="only reuses"):
            mk.get_variable("v", [2])


def test_a_scope_can_be_entered_again_from_anywhere_with_its_full_name() -> None:
    with mk.variable_scope("net"), mk.variable_scope("inner") as scope:
        w = mk.get_variable("w", [2])
    with mk.variable_scope("elsewhere"), mk.variable_scope(scope, reuse=True) as again:
        assert again.name == "net/inner"
        assert mk.get_variable("w") is w


def test_a_scope_ends_also_where_its_body_raises() -> None:
    with pytest.raises(KeyError), mk.variable_scope("net"):
        raise KeyError("no")
    assert mk.get_variable_scope().name == ""


def test_stores_are_separate_and_the_innermost_counts() -> None:
    outer = mk.get_variable("w", [2])
    with mk.VariableStore() as inner_store:
        inner = mk.get_variable("w", [3])
    assert outer is not inner
    assert inner_store.variables == (inner,)
    with inner_store, pytest.raises(ValueError, match="already exists"):
        mk.get_variable("w", [3])


def test_another_shape_is_refused_with_name_place_and_both_shapes() -> None:
    mk.get_variable("w", [2, 3])
    with mk.variable_scope(mk.get_variable_scope(), reuse=True), pytest.raises(ValueError, match="shape") as raised:
        mk.get_variable("w", [2, 4])
    for part in ("'w'", "[2, 3]", "[2, 4]", f"{__file__}:"):
        assert part in str(raised.value)


def test_another_dtype_is_refused_with_name_place_and_both_dtypes() -> None:
    mk.get_variable("w", [2], jnp.float16)
    with mk.variable_scope(mk.get_variable_scope(), reuse=mk.AUTO_REUSE), pytest.raises(ValueError) as raised:
        mk.get_variable("w", [2])
    for part in ("'w'", "float16", "float32", f"{__file__}:"):
        assert part in str(raised.value)


@pytest.mark.parametrize("name", ["", "a//b", "/a", "a/", 3])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="no variable name"):
        mk.get_variable(name, [2])
    with pytest.raises(ValueError, match="no variable name"), mk.variable_scope(name):
        pass


def test_initializers_may_be_functions_arrays_or_left_out() -> None:
    assert mk.get_variable("array", initializer=np.float32([1, 2])).value.tolist() == [1.0, 2.0]
    assert mk.get_variable("ones", [2], initializer=mk.initializers.Ones()).value.tolist() == [1.0, 1.0]
    assert mk.get_variable("zeros", [2]).value.tolist() == [0.0, 0.0]
    assert mk.get_variable("count", [2, 2], jnp.int32).value.tolist() == [[0, 0], [0, 0]]
    limit = (6 / 200) ** 0.5
    glorot = mk.get_variable("glorot", [100, 100]).numpy()
    assert 0.9 * limit < np.abs(glorot).max() <= limit
    with pytest.raises(ValueError, match=r"'wrong'.*\[2\].*\[3\]"):
        mk.get_variable("wrong", [3], initializer=np.float32([1, 2]))
    with pytest.raises(ValueError, match=r"'none' does not exist yet: give its shape"):
        mk.get_variable("none")


def test_a_first_value_depends_on_seed_and_full_name_only(store: Any) -> None:
    def draw(*scopes: str) -> dict[str, list[float]]:
        mk.seed(3)
        with mk.VariableStore():
            for scope in scopes:
                with mk.variable_scope(scope):
                    mk.get_variable("w", [4, 4])
                    mk.get_variable("v", [4], initializer=mk.initializers.RandomNormal())
            return {name: v.value.ravel().tolist() for name, v in mk.get_variable_scope().store.by_name.items()}

    both, one = draw("a", "b"), draw("b")
    assert both["b/w"] == one["b/w"]
    assert both["b/v"] == one["b/v"]
    assert both["a/w"] != both["b/w"]


TRANSFORMS: dict[str, Any] = {
    "jit": lambda f: mk.jit(f)(X),
    "jit of grad": lambda f: mk.jit(lambda: mk.implicit_value_and_gradients(lambda: f(X).sum())()[0])(),
    "grad": lambda f: mk.implicit_value_and_gradients(lambda: f(X).sum())(),
    "value_and_grad of the store": lambda f: mk.grad(lambda: f(X).sum(), mk.get_variable_scope().store)(),
    "value_and_grad": lambda f: mk.value_and_grad(lambda: f(X).sum(), [mk.Variable(1.0)])(),
    "scan": lambda f: mk.scan(lambda c, x: (c, f(x)), None, X[None]),
    "jit of scan": lambda f: mk.jit(lambda: mk.scan(lambda c, x: (c, f(x)), None, X[None])[1])(),
    "while_loop": lambda f: mk.while_loop(lambda v: v[0] < 2, lambda v: (v[0] + 1, f(v[1])), (0, X)),
    "build": lambda f: mk.build(f, X),
    "lower": lambda f: mk.jit(f).lower(X),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_first_definition_inside_any_transform_is_one_definition(name: str, store: Any) -> None:
    def strict(x: Any) -> Any:
        with mk.variable_scope("net"):
            return x @ mk.get_variable("w", [5, 5])

    TRANSFORMS[name](strict)
    assert list(store.by_name) == ["net/w"]
    assert not isinstance(store.by_name["net/w"].value, jax.core.Tracer)
    with pytest.raises(ValueError, match="already exists"):
        strict(X)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_second_definition_inside_one_transform_is_still_an_error(name: str) -> None:
    def twice(x: Any) -> Any:
        return x @ mk.get_variable("w", [5, 5]) @ mk.get_variable("w", [5, 5])

    with pytest.raises(ValueError, match="'w' already exists"):
        TRANSFORMS[name](twice)


def test_a_function_called_twice_shares_its_variables_and_they_train_as_one(store: Any) -> None:
    optimizer = mk.optimizers.Momentum(0.1, 0.9)

    def loss() -> Any:
        return jnp.square(affine_by_name(affine_by_name(X, 5), 5) - 1.0).mean()

    losses = [float(mk.jit(lambda: optimizer.minimize(loss, store))()) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert len(store.variables) == len(optimizer.accumulated_momentum) == 2


def test_each_thread_has_scopes_of_its_own() -> None:
    seen: list[str] = []
    with mk.variable_scope("net"):
        thread = threading.Thread(target=lambda: seen.append(mk.get_variable_scope().name))
        thread.start()
        thread.join()
    assert seen == [""]


def test_a_store_keeps_its_variables_in_copies_and_pickles() -> None:
    module = ByName()
    output = module(X)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        np.testing.assert_array_equal(twin(X), output)
        assert list(twin.store.by_name) == ["affine/w", "affine/b"]
        assert twin.store.by_name["affine/w"] is not module.store.by_name["affine/w"]


# Sharing by identity.


@pytest.mark.parametrize("kind", [SharedTwice, TiedPair])
@pytest.mark.parametrize("copies", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_shared_weight_is_one_variable_one_gradient_and_one_slot_before_and_after_copies(
    kind: Any, copies: Any
) -> None:
    first = kind()
    first(X)
    module, optimizer = copies(first), mk.optimizers.Momentum(0.1, 0.9)
    mk.jit(lambda: optimizer.minimize(lambda: jnp.square(module(X)).sum(), module))()
    shared = module.first.w if kind is SharedTwice else module.encode.w
    other = module.second.w if kind is SharedTwice else module.decode.w
    assert shared is other
    assert sum(v is shared for v in module.trainable_variables) == 1
    assert sum(slot.shape == shared.shape for slot in optimizer.accumulated_momentum) == 1
    assert len(mk.grad(lambda: module(X).sum(), module)()) == len(module.variables)


def test_the_gradient_of_a_shared_weight_is_the_sum_over_its_uses() -> None:
    w = mk.Variable(3.0, name="w")
    pair = [w, w]
    assert float(mk.grad(lambda: pair[0] * 2.0 + pair[1] * 5.0, [w])()[0]) == 7.0
    assert float(mk.jit(mk.grad(lambda: pair[0] * pair[1], [w]))()[0]) == 6.0


def test_a_tied_transpose_is_a_view_that_follows_every_write() -> None:
    module = TiedPair()
    module(X)
    module.encode.w.assign(jnp.zeros([5, 3]))
    assert not module.decode.w.value.any()
    assert module.decode(jnp.ones([1, 3])).tolist() == [[0.0] * 5]
