"""The array types in signatures are true: checked at run time, good calls pass and wrong shapes are refused."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

PREAMBLE = """
import jaxtyping

with jaxtyping.install_import_hook(["modulekit.losses", "modulekit.layers", "modulekit.nets"], "beartype.beartype"):
    import modulekit as mk

import jax, jax.numpy as jnp
from modulekit import losses
from modulekit.layers.dropout import dropout

x = jnp.ones([2, 5])
labels = jnp.array([0, 3])

def refused(call):
    try:
        call()
    except (jaxtyping.TypeCheckError, TypeError) as error:
        assert "type" in str(error).lower(), error
        return
    raise SystemExit(f"accepted: {call.__name__} at line {call.__code__.co_firstlineno}")

def check_that_the_hook_is_on():
    refused(lambda: losses.squared_error("text", x))
"""

GOOD = """
check_that_the_hook_is_on()
rank3 = jnp.ones([2, 6, 5])
for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
    h = rank3.astype(dtype)
    layer = mk.Linear(4)
    code = layer(h)
    assert layer.transpose()(code).shape == h.shape
    assert mk.nets.MLP([4, 3])(h).shape == (2, 6, 3)
    assert dropout(h, 0.5, jax.random.key(0)).shape == h.shape
    assert mk.Dropout(0.5)(h, is_training=True).dtype == dtype
assert mk.Sequential([mk.Linear(4), jnp.tanh])(x).shape == (2, 4)
mlp = mk.nets.MLP([4, 3], dropout_rate=0.5)
mlp(x, is_training=True)
mlp.reverse()(mlp(x, False), False)

assert losses.softmax_cross_entropy(x, labels).shape == (2,)
assert losses.softmax_cross_entropy(rank3, jnp.zeros([2, 6], jnp.int8)).shape == (2,)
assert losses.softmax_cross_entropy(rank3, jax.nn.softmax(rank3)).shape == (2,)
assert losses.sigmoid_cross_entropy(rank3, rank3 > 0).shape == (2,)
assert losses.sigmoid_cross_entropy(x[:, 0], x[:, 0]).shape == (2,)
assert losses.squared_error(rank3, rank3.astype(jnp.int32)).shape == (2,)
losses.check_labels(labels, 5)

model, optimizer = mk.nets.MLP([4, 5]), mk.optimizers.Adam(0.1)

@mk.jit
def step(x, y):
    loss, gradients = mk.value_and_grad(lambda: losses.softmax_cross_entropy(model(x), y).mean(), model)()
    optimizer.apply(gradients, model.trainable_variables)
    return loss

first = step(x, labels)
assert step(x, labels) < first
mk.scan(lambda carry, batch: (carry, step(batch, labels)), None, jnp.stack([x, x]))
"""

BYTES = """
assert losses.softmax_cross_entropy(x, labels.astype(jnp.uint8)).shape == (2,)
losses.check_labels(labels.astype(jnp.uint8), 5)
"""

REFUSED = [
    "losses.softmax_cross_entropy(x, jnp.array([0, 3, 1]))",
    "losses.softmax_cross_entropy(x, jnp.ones([2, 4]))",
    "losses.softmax_cross_entropy(jnp.array([0, 1]), labels)",
    "losses.softmax_cross_entropy(jnp.ones([5]), jnp.array(1))",
    "losses.softmax_cross_entropy(jnp.ones([2, 5], jnp.int32), labels)",
    "losses.sigmoid_cross_entropy(x, jnp.ones([2]))",
    "losses.sigmoid_cross_entropy(x, jnp.ones([2, 1]))",
    "losses.squared_error(jnp.ones([2, 1]), jnp.ones([2]))",
    "losses.squared_error(jnp.array(1.0), jnp.array(1.0))",
    "losses.squared_error(jnp.ones([2], jnp.int32), jnp.ones([2]))",
    "losses.check_labels(x, 5)",
    "losses.check_labels(labels, 'five')",
    "mk.Linear(4)(jnp.ones([5]))",
    "mk.Linear(4)(jnp.ones([2, 5], jnp.int32))",
    "mk.Linear('four')",
    "mk.Linear(4, w_init=0.5)",
    "mk.nets.MLP([4])(jnp.ones([5]))",
    "mk.nets.MLP([4], dropout_rate='half')",
    "mk.nets.MLP(4)",
    "mk.Dropout(0.5)(jnp.ones([2], jnp.int32), is_training=True)",
    "dropout(x, 'half', jax.random.key(0))",
    "mk.Sequential(mk.Linear(4))",
]


def check_program(program: str) -> None:
    """Runs a program with the types checked, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("program", [GOOD, BYTES], ids=["calls of every kind", "labels of bytes"])
def test_good_calls_pass(program: str) -> None:
    check_program(program)


def test_wrong_arguments_are_refused() -> None:
    check_program("check_that_the_hook_is_on()\n" + "\n".join(f"refused(lambda: {call})" for call in REFUSED))


def test_a_wrong_result_would_be_refused() -> None:
    # The hook checks what is returned as well: a broken body must not pass.
    check_program("""
        losses._per_example = lambda values: values.sum()
        refused(lambda: losses.squared_error(x, x))
    """)
