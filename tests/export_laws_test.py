"""Every module of the catalogue leaves as a bundle that computes the same for another batch size, or says why not."""

from pathlib import Path
from typing import Any

import attention_rows
import convolution_rows
import distribute_rows
import jax
import jax.numpy as jnp
import network_rows
import normalization_rows
import numpy as np
import pytest
import recurrent_rows
import structure_rows
from catalogue import ROWS as CATALOGUE
from catalogue import Row, name_of

import modulekit as mk

ROWS = [
    *CATALOGUE, *attention_rows.ROWS, *convolution_rows.ROWS, *network_rows.ROWS, *normalization_rows.ROWS,
    *recurrent_rows.ROWS, *structure_rows.ROWS,
]  # fmt: skip
# Which rows do not leave, and what they are told.
DRAWS, WRITES, FIXED = "draws random numbers", "writes .* keeps no state", "cannot be exported with an open batch size"
REFUSED = {
    **dict.fromkeys(("random_stream", "recurrent_dropout"), DRAWS),
    **dict.fromkeys(
        (
            "moving_average", "mean", "sum", "example_mean", "moving_average_metric", "spectral_norm", "cifar10_convnet",
            "vector_quantizer_ema",
        ),
        WRITES,
    ),
    "lstm": FIXED,  # it holds the lengths of its two sequences
}  # fmt: skip
BATCH_AXES = {**{row.name: 1 for row in recurrent_rows.ROWS}, "masked_grouped_attention": (0, None)}
# Those that are run as well, for another batch size: one for each kind of operation. To compile is what takes long.
RUN = (
    "tied_pair", "containers", "mlp", "by_name", "masked_grouped_attention", "decoding", "learned_positions", "weight_norm",
    "normalized_weight", "conv2d", "conv1d_transpose", "avg_pool", "max_pool", "batch_norm_of_images", "group_norm",
    "vector_quantizer", "unrolled_lstm", "residual_rnn", "tied_table", "batch_apply", "deferred",
)  # fmt: skip


@pytest.fixture(autouse=True)
def first_weights_from_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws first weights without compiling a program for each shape, which would take ten times as long as all else."""
    generator = np.random.default_rng(0)

    def drawn(key: Any, shape: Any, dtype: Any, mean: Any, stddev: Any) -> jax.Array:
        return jnp.asarray(generator.normal(mean, stddev, shape), dtype)

    for name in ("normal", "truncated"):
        monkeypatch.setattr(mk.initializers, name, drawn)


def options_of(row: Row) -> dict[str, Any]:
    """Returns the options of a call that is no training."""
    return {name: False if name == "is_training" else value for name, value in row.options.items()}


def of_another_size(row: Row) -> list[np.ndarray[Any, Any]]:
    """Returns inputs of a batch that is larger by one example."""
    axis = 1 if row in recurrent_rows.ROWS else 0
    return [np.concatenate([x, np.take(x, [0], axis)], axis) for x in map(np.asarray, row.inputs)]


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_every_row_leaves_as_a_bundle_or_says_why_not(row: Row, tmp_path: Path) -> None:
    module, options = row.fresh(), options_of(row)
    mk.build(lambda: row.call(module))
    batch_axis: Any = BATCH_AXES.get(row.name, 0)
    save = lambda: mk.export.save(tmp_path / "x", module, *row.inputs, batch_axis=batch_axis, **options)  # noqa: E731
    if row.name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[row.name]):
            save()
        assert not list(tmp_path.iterdir())
        return
    save()
    if row.name not in RUN:
        return
    inputs = of_another_size(row)
    arrays = [value for value in options.values() if isinstance(value, np.ndarray)]
    found = mk.export.load(tmp_path / "x")(*inputs, *arrays)
    expected = mk.jit(lambda *inputs: module(*inputs, **options))(*inputs)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_the_tables_name_rows() -> None:
    names = {row.name for row in ROWS}
    assert names >= REFUSED.keys() | BATCH_AXES.keys() | set(RUN)
    assert not REFUSED.keys() & set(RUN)
    assert not {row.name for row in distribute_rows.ROWS} & names  # they run on several devices, and are left out
