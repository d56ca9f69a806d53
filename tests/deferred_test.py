"""`Deferred`: construction on the first call, and from then on the module itself."""

import copy
import pickle
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from references import assert_transforms, normal

import modulekit as mk


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


class Codec(mk.Module):
    """Two methods, each with a layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.down, self.up = mk.Linear(size, name="down"), mk.Linear(5, name="up")

    def encode(self, x: Any) -> Any:
        return self.down(x)

    def decode(self, x: Any, *, scale: float = 1.0) -> Any:
        return self.up(x) * scale


class Net(mk.Module):
    """A layer whose size depends on another one that has been called."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = mk.Linear(3, name="encode")
        self.decode = mk.Deferred(lambda: mk.Linear(self.encode.input_size, name="decode"))

    def __call__(self, x: Any) -> Any:
        return self.decode(self.encode(x))


def make_linear() -> mk.Linear:
    return mk.Linear(2)


def test_the_module_is_constructed_once_on_the_first_call() -> None:
    made: list[mk.Linear] = []
    deferred = mk.Deferred(lambda: (made.append(mk.Linear(2)), made[-1])[1])
    assert not made
    for _ in range(2):
        assert deferred(jnp.ones([1, 3])).shape == (1, 2)
        assert made == [deferred.target]
    assert mk.Deferred(make_linear).target.output_size == 2


def test_the_module_stands_in_the_scope_of_the_caller() -> None:
    net = Net()
    assert net(jnp.ones([1, 4])).shape == (1, 4)
    assert [v.name for v in net.variables] == ["net/decode/b", "net/decode/w", "net/encode/b", "net/encode/w"]
    assert net.path_of(net.decode.w) == "decode._target.w"
    alone = mk.Deferred(make_linear, name="later")
    alone(jnp.ones([1, 4]))
    assert alone.name == "later"
    assert [v.name for v in alone.variables] == ["linear/b", "linear/w"]


def test_transforms_change_nothing() -> None:
    assert_transforms(Net, normal(2, 5))


def test_a_module_that_makes_variables_when_constructed_can_be_constructed_in_a_trace() -> None:
    deferred = mk.Deferred(lambda: mk.Embed(existing_vocab=jnp.ones([4, 2]) * 3))
    assert mk.jit(deferred)(jnp.array([1, 2])).tolist() == [[3, 3], [3, 3]]
    assert float(deferred.embeddings[0, 0]) == 3


def test_attributes_are_those_of_the_module() -> None:
    deferred = mk.Deferred(make_linear)
    with pytest.raises(AttributeError) as caught:
        _ = deferred.output_size
    assert str(caught.value) == (
        "'Deferred' object has no attribute 'output_size': its module is constructed on the first call, or by asking for "
        "its target"
    )
    assert deferred.target.output_size == deferred.output_size == 2
    deferred.tag = "set"
    assert deferred.target.tag == deferred.tag == "set"
    del deferred.tag
    with pytest.raises(AttributeError, match=r"^'Linear' object has no attribute 'tag'$"):
        _ = deferred.tag
    assert not hasattr(deferred, "__len__")


def test_what_is_set_before_stays_with_the_deferred_itself() -> None:
    deferred = mk.Deferred(make_linear)
    deferred.tag = 1
    assert deferred.tag == 1
    assert not hasattr(deferred.target, "tag")


def test_other_methods_construct_if_they_are_listed() -> None:
    deferred = mk.Deferred(lambda: Codec(3), call_methods=("__call__", "encode", "decode"))
    code = deferred.encode(jnp.ones([1, 5]))
    assert code.shape == (1, 3)
    assert deferred.decode(code, scale=0.0).tolist() == [[0.0] * 5]
    with pytest.raises(AttributeError, match="'Deferred' object has no attribute 'encode'"):
        mk.Deferred(lambda: Codec(3)).encode(jnp.ones([1, 5]))
    kept = mk.Deferred(lambda: Codec(3), ["encode"]).encode
    assert kept(jnp.ones([1, 5])).shape == kept(jnp.ones([2, 5]))[:1].shape


def test_a_constructor_that_fails_is_tried_again_and_its_error_is_seen() -> None:
    encode = mk.Linear(3)
    decode = mk.Deferred(lambda: mk.Linear(encode.input_size))
    for ask in (lambda: decode(jnp.ones([1, 3])), lambda: decode.target):
        with pytest.raises(AttributeError, match="'Linear' object has no attribute 'input_size'"):
            ask()
    assert decode(encode(jnp.ones([1, 7]))).shape == (1, 7)


def test_text_constructs_the_module_if_that_is_possible() -> None:
    assert repr(mk.Deferred(make_linear)) == str(mk.Deferred(make_linear)) == "Deferred(Linear(output_size=2))"
    encode = mk.Linear(3)
    decode = mk.Deferred(lambda: mk.Linear(encode.input_size))
    assert repr(decode) == "Deferred(<lambda>)"
    encode(jnp.ones([1, 7]))
    assert repr(decode) == "Deferred(Linear(output_size=7))"


def test_a_network_around_it_does_not_construct_it() -> None:
    made: list[int] = []
    deferred = mk.Deferred(lambda: (made.append(1), mk.Linear(2))[1])
    net = mk.Sequential([mk.Linear(3), deferred])
    assert repr(net) == "Sequential(layers=[Linear(output_size=3), Deferred(<lambda>)])"
    assert not made
    net(jnp.ones([1, 4]))
    assert repr(mk.Sequential([deferred])) == "Sequential(layers=[Deferred(Linear(output_size=2))])"


def test_copies_before_and_after_construction() -> None:
    x = jnp.asarray(normal(2, 5))
    before = pickle.loads(pickle.dumps(mk.Deferred(make_linear, call_methods=("encode",))))
    assert before(x).shape == (2, 2)
    deferred = mk.Deferred(make_linear)
    y = deferred(x)
    for copied in (copy.deepcopy(deferred), pickle.loads(pickle.dumps(deferred)), copy.copy(deferred)):
        assert type(copied) is mk.Deferred
        np.testing.assert_array_equal(copied(x), y)
    apart = copy.deepcopy(deferred)
    apart.w.assign(jnp.zeros([5, 2]))
    np.testing.assert_array_equal(deferred(x), y)


class Mirror(mk.Module):
    """As `Net`, with a method for a constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = mk.Linear(3)
        self.decode = mk.Deferred(self._make_decode)

    def _make_decode(self) -> mk.Linear:
        return mk.Linear(self.encode.input_size)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_a_constructor_that_is_a_method_goes_with_its_module_into_copies(copied: Any) -> None:
    net = Mirror()
    twin = copied(net)
    net.encode(jnp.ones([1, 9]))
    assert twin.decode(twin.encode(jnp.ones([1, 5]))).shape == (1, 5)


def test_a_changed_attribute_reaches_the_compiled_function() -> None:
    deferred = mk.Deferred(lambda: mk.nets.MLP([2], activate_final=True))
    compiled, x = mk.jit(deferred), jnp.asarray(normal(3, 5))
    assert float(compiled(x).min()) >= 0
    deferred.activation = jnp.tanh
    np.testing.assert_allclose(compiled(x), jnp.tanh(deferred.layers[0](x)), rtol=1e-6)


def test_variables_before_construction() -> None:
    with pytest.raises(ValueError, match=r"^Deferred\(.*\) does not currently contain any variables"):
        _ = mk.Deferred(make_linear).variables


def test_a_deferred_layer_learns() -> None:
    net, optimizer, x = Net(), mk.optimizers.Adam(0.1), jnp.asarray(normal(6, 2))
    step = mk.jit(lambda: optimizer.minimize(lambda: jnp.mean((net(x) - x) ** 2), net))
    losses = [float(step()) for _ in range(100)]
    assert losses[-1] < 0.05 * losses[0]
