"""Laws of padding: samples of any sizes come back out of the arrays, and what fills them up changes no gradient."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modulekit as mk
from modulekit.data import padded

Sample = dict[str, np.ndarray]


def graph(nodes: int, edges: int, seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    return {
        "nodes": rng.normal(size=[nodes, 3]).astype(np.float32),
        "edges": rng.integers(0, nodes, size=[edges, 2]).astype(np.int32),
        "adjacency": rng.integers(0, 2, size=[nodes, nodes]).astype(np.float32),
        "label": np.float32(rng.normal()),
    }


lengths = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=5)


@given(lengths=lengths, nodes=st.integers(5, 7), is_given=st.booleans())
def test_each_sample_comes_back_and_the_rest_is_zero(
    lengths: list[tuple[int, int]], nodes: int, is_given: bool
) -> None:
    samples = [graph(*sizes, seed) for seed, sizes in enumerate(lengths)]
    found = padded(samples, {"nodes": nodes, "adjacency": (nodes, nodes)} if is_given else None)
    longest = nodes if is_given else max(count for count, _ in lengths)
    edges = max(count for _, count in lengths)
    assert {name: array.shape[1:] for name, array in found.items() if name != "mask"} == {
        "nodes": (longest, 3), "edges": (edges, 2), "adjacency": (longest, longest), "label": (),
    }  # fmt: skip
    assert found["mask"].keys() == {"nodes", "edges", "adjacency"}
    for index, sample in enumerate(samples):
        for name, array in sample.items():
            own = found[name][(index, *map(slice, array.shape))]
            assert own.tobytes() == array.tobytes() and own.dtype == array.dtype
            assert np.count_nonzero(found[name][index]) == np.count_nonzero(array)
            if array.ndim:
                assert found["mask"][name][index].tolist() == [i < len(array) for i in range(found[name].shape[1])]


def loss_of(weights: Any, sample: Any) -> Any:
    """Returns the loss of a graph: two rounds of messages along edges and through the matrix, and a masked mean."""
    own = sample.get("mask") or {name: np.ones(len(sample[name]), bool) for name in ("nodes", "edges")}
    h = jnp.tanh(sample["nodes"] @ weights["in"])
    for _ in range(2):
        start, end = sample["edges"][:, 0], sample["edges"][:, 1]
        messages = own["edges"][:, None] * (h[start] @ weights["edge"])
        h = jnp.tanh(h + jnp.zeros_like(h).at[end].add(messages) + sample["adjacency"] @ h @ weights["around"])
        h = own["nodes"][:, None] * h
    return (h.sum() / own["nodes"].sum() - sample["label"]) ** 2


@pytest.mark.parametrize("sizes", [(2, 1), (5, 7), (4, 0)])
def test_padding_does_not_change_the_gradient(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    shapes = {"in": [3, 4], "edge": [4, 4], "around": [4, 4]}
    weights = {name: rng.normal(size=shape).astype(np.float32) / 2 for name, shape in shapes.items()}
    sample = graph(*sizes, seed=3)
    data = padded([sample, graph(1, 3, 4)], {"nodes": 9, "edges": 11, "adjacency": (9, 9)})
    with jax.enable_x64(True):  # in float32 the two differ by rounding, as any two orders of adding up do
        gradient = jax.jit(jax.grad(loss_of))
        found = gradient(doubles(weights), doubles(jax.tree.map(lambda array: array[0], data)))
        for name, expected in gradient(doubles(weights), doubles(sample)).items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-12, err_msg=name)


def doubles(arrays: Any) -> Any:
    return jax.tree.map(lambda a: np.asarray(a, np.float64) if a.dtype == np.float32 else a, arrays)


def test_padded_samples_are_data_of_a_scenario() -> None:
    data = mk.data.Arrays(padded([graph(2, 1, 0), graph(4, 3, 1)]))
    assert data.size == 2
    assert data.take([1])["mask"]["edges"].tolist() == [[True, True, True]]


def test_numbers_alone_have_no_mask() -> None:
    assert padded([{"label": 1}, {"label": 2}])["label"].tolist() == [1, 2]
    assert padded([{"label": 1}]).keys() == {"label"}


X = {"x": np.zeros([2, 3])}
WRONG: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "no sample": ([], None, ValueError, "there are no samples: padded needs one at least"),
    "names": ([X, {"y": 1}], None, ValueError, "samples must have the same names: sample 0 has ['x'], sample 1 ['y']"),
    "a rank": (
        [X, {"x": np.zeros([2])}],
        None,
        ValueError,
        "samples[1]['x'] is float64[2], and that of sample 0 is float64[2, 3]: give arrays of one rank and dtype",
    ),
    "a dtype": ([X, {"x": np.zeros([2, 3], int)}], None, ValueError, "samples[1]['x'] is int64[2, 3], and that of"),
    "a text": ([{"x": "text"}], None, TypeError, "samples[0]['x'] must hold numbers or booleans"),
    "too large": ([X, X], {"x": 1}, ValueError, "samples[0]['x'] has shape [2, 3], and sizes['x']=1"),
    "too wide": ([X], {"x": (4, 2)}, ValueError, "samples[0]['x'] has shape [2, 3], and sizes['x']=(4, 2)"),
    "too many axes": (
        [X],
        {"x": (4, 4, 4)},
        ValueError,
        "sizes['x']=(4, 4, 4) has more axes than the arrays, which have 2",
    ),
    "no such name": ([X], {"y": 1}, ValueError, "sizes has ['y'], and the samples have ['x']"),
    "the masks' name": (
        [{"mask": 1}],
        None,
        ValueError,
        "samples have something named 'mask', which is where the masks go",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_padded_is_named(case: str) -> None:
    samples, sizes, error, message = WRONG[case]
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        padded(samples, sizes)
