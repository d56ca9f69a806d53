"""Laws of modules: names, collection, repr, and what a constructor need not do."""

import copy
import dataclasses
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from catalogue import ROWS, Containers, Row, Scaled, SharedTwice, TiedPair, X, name_of

import modulekit as mk


def test_names_of_variables_are_sonnets_scopes_and_paths_are_attribute_paths() -> None:
    mlp = mk.nets.MLP([3, 2])
    mlp(X)
    assert {path: v.name for path, v in mlp.paths().items()} == {
        "layers[0].b": "mlp/linear_0/b", "layers[0].w": "mlp/linear_0/w",
        "layers[1].b": "mlp/linear_1/b", "layers[1].w": "mlp/linear_1/w",
    }  # fmt: skip


def test_plain_lists_tuples_and_dicts_of_modules_are_found_at_any_depth() -> None:
    module = Containers()
    module(X)
    assert list(module.paths()) == [
        "heads['left'].b", "heads['left'].w", "heads['right'][0]['inner'].b", "heads['right'][0]['inner'].w",
        "stages[0].layers[0].b", "stages[0].layers[0].w", "stages[1][0].b", "stages[1][0].w",
    ]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_paths_lead_to_their_variables_and_back(row: Row) -> None:
    module = row.fresh()
    row.call(module)
    for path, variable in module.paths().items():
        assert eval(f"module.{path}", {"module": module}) is variable
        assert module.path_of(variable) == path
    assert set(module.trainable_variables) | set(module.non_trainable_variables) == set(module.variables)
    assert not set(module.trainable_variables) & set(module.non_trainable_variables)


def test_own_variables_come_first_by_attribute_name_then_submodules() -> None:
    class Net(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a_part = mk.Linear(1)
            self.z = mk.Variable(1.0, name="z")
            self.b = [mk.Variable(1.0, name="b0"), mk.Variable(1.0, name="b1")]

    net = Net()
    net.a_part(X)
    assert list(net.paths()) == ["b[0]", "b[1]", "z", "a_part.b", "a_part.w"]


def test_a_shared_variable_is_collected_once() -> None:
    for module, count in ((SharedTwice(), 2), (TiedPair(), 3)):
        module(X)
        assert len(module.variables) == len(set(module.variables)) == count


def test_cycles_end() -> None:
    class Node(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = mk.Variable(1.0, name="w")
            self.me = self
            self.ring: list[Any] = [self]
            self.ring.append(self.ring)

    node = Node()
    assert list(node.paths()) == ["w"]
    assert node.submodules == ()
    assert mk.jit(lambda: node.w * 2)() == 2.0
    twin = copy.deepcopy(node)
    assert twin.me is twin
    assert twin.ring[1] is twin.ring


def test_submodules_are_listed_once_without_the_module_itself() -> None:
    module = SharedTwice()
    assert module.submodules == (module.first,)
    assert [m.name for m in Containers().submodules] == ["left", "right", "sequential", "second", "first"]


def test_forgetting_the_super_constructor_is_an_error_that_says_so() -> None:
    class Forgetful(mk.Module):
        def __init__(self) -> None:
            self.size = 3

    with pytest.raises(ValueError, match=r"Forgetful\.__init__ with `super\(\)\.__init__\(name=name\)`"):
        Forgetful()


def test_a_constructor_that_raises_leaves_no_scope_behind() -> None:
    class Broken(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            raise KeyError("no")

    with pytest.raises(KeyError):
        Broken()
    assert mk.Variable(1.0, name="w").name == "w"


@pytest.mark.parametrize("name", ["", "two words", "1st", "a/b", "a-b"])
def test_a_name_that_is_no_word_is_refused_with_the_name(name: str) -> None:
    with pytest.raises(ValueError, match="not a valid module name"):
        mk.Linear(3, name=name)


@pytest.mark.parametrize(
    ("class_name", "name"), [("Linear", "linear"), ("MLP", "mlp"), ("Conv2D", "conv2_d"), ("RMSProp", "rms_prop")]
)
def test_default_names_are_class_names_in_snake_case(class_name: str, name: str) -> None:
    assert type(class_name, (mk.Module,), {})().name == name


def test_repr_shows_the_arguments_that_differ_from_their_defaults() -> None:
    assert repr(mk.Linear(3)) == "Linear(output_size=3)"
    assert repr(mk.Linear(3, with_bias=False, name="out")) == "Linear(output_size=3, with_bias=False, name='out')"
    assert repr(mk.Sequential([mk.Linear(3)])) == "Sequential(layers=[Linear(output_size=3)])"
    assert repr(Scaled(4, scale=0.1)) == "Scaled(output_size=4, scale=0.1)"


def test_every_method_and_property_runs_inside_the_modules_scope() -> None:
    class Net(mk.Module):
        def method(self) -> str:
            return mk.Variable(0.0, name="m").name

        @property
        def prop(self) -> str:
            return mk.Variable(0.0, name="p").name

        @staticmethod
        def static() -> str:
            return mk.Variable(0.0, name="s").name

        @classmethod
        def of_class(cls) -> str:
            return mk.Variable(0.0, name="c").name

        @mk.no_name_scope
        def outside(self) -> str:
            return mk.Variable(0.0, name="o").name

    with mk.name_scope("tower"):
        net = Net(name="net")
    assert (net.method(), net.prop, net.outside()) == ("tower/net/m", "tower/net/p", "o")
    assert (net.static(), Net.of_class()) == ("s", "c")
    with net.name_scope:
        assert mk.Variable(0.0, name="x").name == "tower/net/x"
    assert mk.Variable(0.0, name="x").name == "x"


def test_asking_for_variables_before_the_first_call_names_the_remedies() -> None:
    layer = mk.Linear(3)
    for listed in ("variables", "trainable_variables", "non_trainable_variables"):
        with pytest.raises(ValueError, match=listed) as raised:
            getattr(layer, listed)
        text = str(raised.value)
        for remedy in (
            "Linear(output_size=3)",
            "module(x)",
            "mk.build",
            "mk.value_and_grad",
            "mk.allow_empty_variables",
        ):
            assert remedy in text
    assert mk.allow_empty_variables(mk.Linear(3)).variables == ()
    assert mk.Dropout(0.5).variables == ()


def test_a_module_is_equal_to_itself_only_and_hashable() -> None:
    a, b = mk.Linear(3), mk.Linear(3)
    assert a != b
    assert len({a, b}) == 2


def test_a_dataclass_is_a_module_with_names_repr_and_comparison_by_fields() -> None:
    module = Scaled(3)
    module(X)
    assert [v.name for v in module.variables] == ["scaled/gain", "scaled/linear/b", "scaled/linear/w"]
    assert mk.jit(module)(X).shape == (4, 3)
    assert dataclasses.replace(module, scale=2.0).scale == 2.0


def test_attributes_of_any_kind_may_be_set_and_deleted() -> None:
    net = mk.Sequential([])
    net.anything = {"x": [1, 2]}
    assert net.anything == {"x": [1, 2]}
    del net.anything
    assert not hasattr(net, "anything")


def test_an_activation_of_jax_keeps_its_identity_in_copies_and_pickles() -> None:
    functions = [jax.nn.relu, jnp.tanh, jax.nn.gelu, jax.nn.softplus, jax.nn.silu, jax.nn.relu6, jnp.square]
    net = mk.Sequential(functions)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(a is b for a, b in zip(twin.layers, functions, strict=True))


def test_two_modules_pickled_together_still_share() -> None:
    encode = mk.Linear(3)
    decode = encode.transpose()
    decode(encode(X))
    for copies in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        encode_twin, decode_twin = copies((encode, decode))
        assert decode_twin.w is encode_twin.w
        assert decode_twin.w is not encode.w
        mk.optimizers.SGD(0.1).minimize(
            lambda e=encode_twin, d=decode_twin: jnp.square(d(e(X)) - X).mean(), [encode_twin.w]
        )
        assert bool((decode_twin.w.value == encode_twin.w.value).all())
        assert not bool((encode_twin.w.value == encode.w.value).all())


def test_an_optimizer_pickled_with_its_model_goes_on_as_if_nothing_had_happened() -> None:
    def train(model: Any, optimizer: Any) -> list[float]:
        step = mk.jit(lambda: optimizer.minimize(lambda: jnp.square(model(X) - 1.0).mean(), model))
        return [float(step()) for _ in range(3)]

    model, optimizer = mk.nets.MLP([4, 1]), mk.optimizers.Adam(0.1)
    train(model, optimizer)
    model_twin, optimizer_twin = pickle.loads(pickle.dumps((model, optimizer)))
    assert train(model_twin, optimizer_twin) == train(model, optimizer)
    assert len(optimizer_twin.m) == len(model_twin.trainable_variables)


def test_a_summary_counts_a_shared_variable_once() -> None:
    module = SharedTwice()
    module(X)
    assert module.summary().endswith("30 parameters in 2 variables, 30 of them trainable, 120 bytes")
    assert mk.format_variables(module.variables).count("\n") == 3


def test_attributes_of_any_name_are_the_users_own() -> None:
    class Recurrent(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self._hidden, self._name, self._scope, self.built = 1, "n", None, True

    assert (Recurrent()._hidden, Recurrent().name) == (1, "recurrent")


def test_the_name_scope_of_a_module_is_a_property_that_may_be_entered_many_times() -> None:
    net = mk.nets.MLP([3, 2], name="net")
    layer = net.submodules[0]
    assert layer.name_scope.name == "net/linear_0/"
    for _ in range(2):
        with layer.name_scope:
            assert mk.Variable(0.0, name="v").name == "net/linear_0/v"
    assert mk.Variable(0.0, name="v").name == "v"


def test_a_method_runs_after_the_super_constructor_or_is_marked() -> None:
    class Early(mk.Module):
        def __init__(self) -> None:
            self.prepare()
            super().__init__()

        def prepare(self) -> None:
            self.ready = True

    class Marked(Early):
        @mk.no_name_scope
        def prepare(self) -> None:
            self.ready = True

    with pytest.raises(AttributeError, match=r"^The super constructor must be called before any other methods"):
        Early()
    assert Marked().ready


@pytest.mark.parametrize("name", [3, True, b"layer"])
def test_a_name_that_is_no_string_is_a_type_error(name: Any) -> None:
    with pytest.raises(TypeError) as raised:
        mk.Linear(2, name=name)
    kind = type(name).__name__
    assert str(raised.value) == f"{name!r} is not a valid module name: expected a string, got {kind}"
