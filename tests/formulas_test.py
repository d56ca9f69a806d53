"""Every equation in a public docstring is evaluated by a test: here in float64 NumPy, or by the test that `ELSEWHERE` names.

The references below are the docstrings' equations, written plainly.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from docstrings_test import EXEMPT, OBJECTS, is_mathematical
from references import convolution, exact, normal

import modulekit as mk
from modulekit.nets import resnet

TESTS = Path(__file__).parent
EPS = 1e-5
Weights = dict[str, np.ndarray]
Pairs = list[tuple[Any, Any]]  # what a module gave, and what its equation gives


def randomized(module: Any) -> Weights:
    """Gives every trainable variable a random value; returns the values by their names inside of the module."""
    for index, variable in enumerate(module.trainable_variables):
        variable.assign(0.5 * normal(*variable.shape, seed=index) + 0.25)
    return {v.name.partition("/")[2]: exact(v) for v in module.trainable_variables}


# Residual networks: `norm` and `conv` are the equations of `BatchNorm` in training and of `Conv2D` without a bias.


def norm(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    return w[f"{name}/scale"] * (x - mean) / np.sqrt(variance + EPS) + w[f"{name}/offset"]


def conv(x: np.ndarray, w: Weights, name: str, stride: int = 1) -> np.ndarray:
    kernel = w[f"{name}/w"]
    half = (len(kernel) - 1) // 2
    return convolution(x, kernel, [stride] * 2, [1, 1], [(half, half)] * 2)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def block_v1(x: np.ndarray, w: Weights, stride: int, prefix: str = "") -> np.ndarray:
    """`y = relu(x' + f(x))`."""
    f = relu(norm(conv(x, w, f"{prefix}conv_0"), w, f"{prefix}batchnorm_0"))
    f = relu(norm(conv(f, w, f"{prefix}conv_1", stride), w, f"{prefix}batchnorm_1"))
    f = norm(conv(f, w, f"{prefix}conv_2"), w, f"{prefix}batchnorm_2")
    if f"{prefix}shortcut_conv/w" in w:
        x = norm(conv(x, w, f"{prefix}shortcut_conv", stride), w, f"{prefix}shortcut_batchnorm")
    return relu(x + f)


def block_v2(x: np.ndarray, w: Weights, stride: int, prefix: str = "") -> np.ndarray:
    """`y = x' + f(a)`, with `a = relu(norm_0(x))`."""
    a = relu(norm(x, w, f"{prefix}batchnorm_0"))
    f = conv(a, w, f"{prefix}conv_0")
    f = conv(relu(norm(f, w, f"{prefix}batchnorm_1")), w, f"{prefix}conv_1", stride)
    f = conv(relu(norm(f, w, f"{prefix}batchnorm_2")), w, f"{prefix}conv_2")
    return f + (conv(a, w, f"{prefix}shortcut_conv", stride) if f"{prefix}shortcut_conv/w" in w else x)


def group(x: np.ndarray, w: Weights, blocks: int, stride: int, version: int, prefix: str = "") -> np.ndarray:
    """`y = block_n(... block_2(block_1(x)))`, where the first block has the stride."""
    for index in range(blocks):
        block = block_v1 if version == 1 else block_v2
        x = block(x, w, stride if index == 0 else 1, f"{prefix}block_{index}/")
    return x


def max_pool(x: np.ndarray) -> np.ndarray:
    """The largest of each window of 3x3 at every second position of an even number of them."""
    padded = np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)], constant_values=-np.inf)
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    return np.stack(
        [
            np.stack(
                [padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(1, 2)) for j in range(columns)],
                axis=1,
            )
            for i in range(rows)
        ],
        axis=1,
    )


def res_net(x: np.ndarray, w: Weights, blocks: list[int], version: int) -> np.ndarray:
    """`logits = mean_p(groups(max_pool(relu(norm(conv(x)))))[p]) w + b`; with the norm behind the groups in version 2."""
    x = conv(x, w, "initial_conv", 2)
    x = max_pool(relu(norm(x, w, "initial_batchnorm")) if version == 1 else x)
    for index, (count, stride) in enumerate(zip(blocks, (1, 2, 2, 2), strict=True)):
        x = group(x, w, count, stride, version, f"block_group_{index}/")
    if version == 2:
        x = relu(norm(x, w, "final_batchnorm"))
    return x.mean(axis=(1, 2)) @ w["logits/w"] + w["logits/b"]


def of_block(kind: Any, reference: Callable[..., np.ndarray]) -> Pairs:
    x = normal(2, 4, 4, 8)
    pairs = []
    for stride, projected in ((2, True), (1, False)):
        block = kind(8, stride, projected, {})
        mk.build(block, x, is_training=True)
        w = randomized(block)
        pairs.append((block(jnp.asarray(x), is_training=True), reference(exact(x), w, stride)))
    return pairs


def of_block_group() -> Pairs:
    x = normal(2, 4, 4, 3)
    pairs = []
    for version in (1, 2):
        blocks = resnet.BlockGroup(8, 2, 2, {}, resnet_v2=version == 2)
        mk.build(blocks, x, is_training=True)
        w = randomized(blocks)
        pairs.append((blocks(jnp.asarray(x), is_training=True), group(exact(x), w, 2, 2, version)))
    return pairs


def of_res_net() -> Pairs:
    x, counts = normal(3, 16, 16, 3), [1, 2, 0, 0]
    pairs = []
    for version in (1, 2):
        net = mk.nets.ResNet(counts, 5, resnet_v2=version == 2, channels_per_group_list=(4, 8, 8, 8))
        mk.build(net, x, is_training=True)
        w = randomized(net)
        pairs.append((net(jnp.asarray(x), is_training=True), res_net(exact(x), w, counts, version)))
    return pairs


def of_res_net_50() -> Pairs:
    """It is a `ResNet`, and only the numbers of its layers are its own."""
    modules = mk.nets.ResNet50(10).submodules
    convolutions = [m for m in modules if isinstance(m, mk.Conv2D)]
    projections = [m for m in convolutions if m.name == "shortcut_conv"]
    groups = [m for m in modules if isinstance(m, resnet.BlockGroup)]
    blocks = [sum(isinstance(m, resnet.BottleNeckBlockV1) for m in g.submodules) for g in groups]
    return [(len(convolutions) - len(projections), 49), (sorted(blocks), [3, 3, 4, 6])]


# Vector quantization.


def nearest(x: np.ndarray, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`q(x) = e_k`, `k = argmin_j |x - e_j|^2`, for vectors `x[n]` and embeddings `e[:, j]`."""
    k = np.array([np.argmin([np.sum((vector - e[:, j]) ** 2) for j in range(e.shape[1])]) for vector in x])
    return k, np.stack([e[:, j] for j in k])


def of_vector_quantizer() -> Pairs:
    x = normal(6, 3)
    quantizer = mk.nets.VectorQuantizer(3, 4, commitment_cost=0.25)
    e = 0.5 * exact(quantizer.embeddings) + 0.3
    quantizer.embeddings.assign(jnp.asarray(e, jnp.float32))
    e = exact(quantizer.embeddings)
    found = quantizer(jnp.asarray(x), is_training=True)
    k, q = nearest(exact(x), e)
    shares = np.bincount(k, minlength=4) / len(k)
    straight = jax.grad(lambda x: (3 * quantizer(x, is_training=True)["quantize"]).sum())(jnp.asarray(x))
    return [
        (found["encoding_indices"], k),
        (found["quantize"], q),
        (found["loss"], (1 + 0.25) * np.mean((q - exact(x)) ** 2)),
        (found["perplexity"], np.exp(-sum(s * np.log(s) for s in shares if s > 0))),
        (straight, np.full(x.shape, 3.0)),
    ]


def of_moving_vector_quantizer() -> Pairs:
    decay, epsilon, count = 0.9, 1e-2, 4
    quantizer = mk.nets.VectorQuantizerEMA(3, count, 0.25, decay, epsilon)
    e, sizes, sums = exact(quantizer.embeddings), np.zeros(count), np.zeros([3, count])
    pairs = []
    for step in range(1, 4):
        x = normal(6, 3, seed=step)
        found = quantizer(jnp.asarray(x), is_training=True)
        k, q = nearest(exact(x), e)
        one_hot = np.eye(count)[k]
        sizes = decay * sizes + (1 - decay) * one_hot.sum(axis=0)
        sums = decay * sums + (1 - decay) * exact(x).T @ one_hot
        n_k, m_k = sizes / (1 - decay**step), sums / (1 - decay**step)
        n = n_k.sum()
        e = m_k / (n * (n_k + epsilon) / (n + count * epsilon))
        pairs += [(found["quantize"], q), (found["loss"], 0.25 * np.mean((q - exact(x)) ** 2))]
        pairs.append((exact(quantizer.embeddings), e))
    return pairs


# The rest.


def of_moving_average() -> Pairs:
    average, hidden, pairs = mk.ExponentialMovingAverage(0.8), np.zeros(3), []
    for step in range(1, 5):
        value = normal(3, seed=step)
        hidden = hidden - (1 - 0.8) * (hidden - exact(value))
        pairs.append((average(jnp.asarray(value)), hidden / (1 - 0.8**step)))
    return pairs


FORMULAS: dict[str, Callable[[], Pairs]] = {
    "BottleNeckBlockV1": lambda: of_block(resnet.BottleNeckBlockV1, block_v1),
    "BottleNeckBlockV2": lambda: of_block(resnet.BottleNeckBlockV2, block_v2),
    "BlockGroup": of_block_group,
    "ResNet": of_res_net,
    "ResNet50": of_res_net_50,
    "VectorQuantizer": of_vector_quantizer,
    "VectorQuantizerEMA": of_moving_vector_quantizer,
    "ExponentialMovingAverage": of_moving_average,
}

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "accumulation_test.py::test_the_mean_is_weighted_in_any_order": ("Accumulated",),
    "attention_test.py::test_self_attention_is_its_equation": ("MultiHeadAttention",),
    "averaging_test.py::test_the_average_is_the_recursion_of_the_docstring": ("WeightAverage",),
    "attention_cache_test.py::test_any_chunks_give_the_full_causal_pass": ("KeyValueCache",),
    "transformer_test.py::test_a_decoder_is_its_equation": ("Transformer", "TransformerBlock"),
    "positions_test.py::test_pairs_of_neighbors_are_turned_by_the_angles_of_the_paper": ("rotary",),
    "positions_test.py::test_each_position_gets_its_vector": ("LearnedPositions",),
    "weight_normalization_test.py::test_sigma_is_the_largest_singular_value": ("SpectralNorm",),
    "weight_normalization_test.py::test_lengths_and_directions_are_apart": ("WeightNorm",),
    "normalized_weight_test.py::test_the_layer_computes_with_the_normalized_weight_and_keeps_its_own": ("NormalizedWeight",),
    "batch_apply_test.py::test_a_module_for_a_batch_is_applied_to_each_step": ("BatchApply",),
    "batch_apply_test.py::test_merging_makes_one_axis_of_the_leading_ones_and_splitting_undoes_it": (
        "merge_leading_dims", "split_leading_dim",
    ),
    "bias_test.py::test_b_has_the_axes_of_bias_dims_and_is_added": ("Bias",),
    "cifar10_convnet_test.py::test_the_outputs_are_those_of_the_layers_written_out": ("Cifar10ConvNet",),
    "conv_test.py::test_a_convolution_is_its_equation": ("Conv1D", "Conv2D", "Conv3D"),
    "conv_transpose_test.py::test_a_transposed_convolution_is_its_equation": (
        "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose",
    ),
    "loss_scaling_test.py::test_the_scale_is_its_recursion_and_updates_that_are_not_finite_change_nothing_else": (
        "LossScaled",
    ),
    "clipping_test.py::test_clipping_is_its_equation_and_that_of_optax": ("Clipped",),
    "conv_lstm_test.py::test_steps_are_those_of_the_equations": ("Conv1DLSTM", "Conv2DLSTM", "Conv3DLSTM"),
    "deep_rnn_test.py::test_a_deep_rnn_passes_outputs_up_and_steps_only_its_cores": ("DeepRNN",),
    "deep_rnn_test.py::test_skip_connections_show_the_inputs_to_each_core_and_join_the_outputs": (
        "deep_rnn_with_skip_connections",
    ),
    "deep_rnn_test.py::test_residual_connections_add_what_each_core_sees": ("deep_rnn_with_residual_connections",),
    "deep_rnn_test.py::test_a_trainable_state_is_the_same_for_all_sequences_and_named_by_its_path": ("TrainableState",),
    "deferred_test.py::test_the_module_is_constructed_once_on_the_first_call": ("Deferred",),
    "depthwise_test.py::test_a_depthwise_convolution_is_its_equation": ("DepthwiseConv2D",),
    "embed_test.py::test_each_token_becomes_its_vector": ("Embed",),
    "gradient_rules_test.py::test_scaling_changes_the_gradient_and_nothing_else": ("scale_gradient",),
    "gradient_rules_test.py::test_clipping_stops_only_the_gradient_that_leads_further_away": ("leaky_clip_by_value",),
    "gan_losses_test.py::test_losses_are_their_equations": (
        "hinge_d", "least_squares_d", "least_squares_g", "minimax_d", "minimax_g", "non_saturating_g", "relativistic_d",
        "relativistic_g", "wasserstein_d", "wasserstein_g",
    ),
    "gan_losses_test.py::test_r1_is_the_squared_slope_by_finite_differences": ("r1_penalty",),
    "gan_losses_test.py::test_the_gradient_penalty_is_its_equation_by_finite_differences": ("gradient_penalty",),
    "gan_measures_test.py::test_the_distance_is_that_of_scipys_matrix_root": ("frechet_distance",),
    "gan_measures_test.py::test_precision_and_recall_are_the_papers": ("precision_and_recall",),
    "gan_measures_test.py::test_points_of_the_ring_are_around_its_modes_with_its_deviation": ("RingOfGaussians",),
    "gan_test.py::test_two_hundred_updates_are_those_of_a_loop_by_hand": ("GAN",),
    "initializers_test.py::test_constants": (
        "Zeros", "Ones", "Constant", "initializers.Identity",
    ),
    "initializers_test.py::test_values_follow_the_distribution": ("RandomUniform", "RandomNormal", "TruncatedNormal"),
    "initializers_test.py::test_orthogonal": ("Orthogonal",),
    "initializers_test.py::test_fans": ("fans",),
    "initializers_test.py::test_variance_scaling_has_the_variance_of_its_fan": ("VarianceScaling",),
    "layers_test.py::test_linear_is_its_equation": ("Linear",),
    "layers_test.py::test_sequential_calls_layers_in_order": ("Sequential",),
    "layers_test.py::test_dropout_drops_its_share_and_scales_the_rest": ("Dropout",),
    "layers_test.py::test_mlp_is_linear_layers_with_activations_between": ("MLP",),
    "losses_test.py::test_values_are_those_of_the_formula": (
        "softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error",
    ),
    "metrics_test.py::test_sum_is_element_wise": ("Sum",),
    "metrics_test.py::test_mean_counts_calls_and_not_examples": ("Mean",),
    "metrics_test.py::test_accuracy_is_the_share_for_any_batches": ("Accuracy", "correct"),
    "metrics_test.py::test_masked_examples_do_not_count": ("ExampleMean",),
    "metrics_laws_test.py::test_parts_merge_into_the_whole": ("ExampleMetric",),
    "metrics_laws_test.py::test_a_total_is_the_exact_sum_rounded": ("Total",),
    "metrics_laws_test.py::test_a_collection_keeps_rows_exactly_and_in_order": ("Collection",),
    "metrics_classification_test.py::test_top_k_accuracy_is_scikit_learns": ("TopKAccuracy",),
    "metrics_classification_test.py::test_nll_is_scikit_learns_log_loss": ("NegativeLogLikelihood",),
    "metrics_classification_test.py::test_brier_score_is_scikit_learns_unhalved": ("BrierScore",),
    "metrics_classification_test.py::test_calibration_error_is_the_weighted_gap_of_its_curve": (
        "CalibrationError", "CalibrationCurve",
    ),
    "metrics_classification_test.py::test_confusion_matrix_is_scikit_learns": ("ConfusionMatrix",),
    "metrics_classification_test.py::test_the_class_table_is_scikit_learns_with_nothing_said_where_nothing_is_known": (
        "ClassTable",
    ),
    "metrics_classification_test.py::test_the_area_of_each_class_is_scikit_learns": ("AreaUnderROC",),
    "metrics_reconstruction_test.py::test_mean_squared_error_is_scikit_learns": ("MeanSquaredError", "PerExample"),
    "metrics_reconstruction_test.py::test_psnr_is_the_mean_over_images": ("PSNR",),
    "metrics_reconstruction_test.py::test_ssim_is_the_papers": ("SSIM",),
    "metrics_reconstruction_test.py::test_coverage_is_the_share_of_targets_inside": ("Coverage",),
    "normalization_test.py::test_the_formula_in_float64": ("LayerNorm", "InstanceNorm", "RMSNorm", "GroupNorm"),
    "normalization_test.py::test_batch_normalization_in_training_and_after_it": ("BatchNorm", "BaseBatchNorm"),
    "optimizers_test.py::test_twenty_steps_follow_the_docstring": ("SGD", "Momentum", "Adam", "RMSProp"),
    "optimizers_test.py::test_optax_transformations_do_what_they_do_in_optax": ("Optax",),
    "pad_test.py::test_create_places_batch_and_channels": ("create",),
    "pad_test.py::test_where_the_padding_goes": ("valid", "same", "full", "causal", "reverse_causal"),
    "pool_test.py::test_pooling_is_the_reduction_of_what_each_window_meets": (
        "avg_pool", "max_pool", "AvgPool", "MaxPool",
    ),
    "recurrent_cores_test.py::test_steps_are_those_of_the_equations": ("VanillaRNN", "LSTM", "GRU", "RNNCore"),
    "recurrent_dropout_test.py::test_each_step_of_an_unroll_sees_the_hidden_state_through_the_same_mask": (
        "lstm_with_recurrent_dropout",
    ),
    "regularizers_test.py::test_a_penalty_is_the_scaled_sum_of_its_equation_over_all_arrays": (
        "L1", "L2", "OffDiagonalOrthogonal",
    ),
    "reshape_test.py::test_the_axes_behind_the_preserved_ones_are_reshaped_in_order": ("reshape", "Reshape"),
    "reshape_test.py::test_flatten_makes_one_axis_of_the_rest": ("flatten", "Flatten"),
    "reshape_test.py::test_the_identity_returns_the_very_same_and_ignores_the_rest": ("modulekit.Identity",),
    "schedules_test.py::test_each_update_has_the_value_for_the_updates_done": ("Scheduled",),
    "stack_test.py::test_a_stack_is_the_unrolled_loop_from_its_first_call": ("stack",),
    "unroll_test.py::test_an_unroll_is_each_sequence_on_its_own_up_to_its_length": ("static_unroll", "dynamic_unroll"),
    "unroll_test.py::test_an_unrolled_lstm_is_the_unroll_of_an_lstm_with_its_weights": (
        "UnrolledLSTM", "UnrolledRNN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_a_docstrings_equation_gives_what_the_code_gives(name: str) -> None:
    mk.seed(0)
    for found, expected in FORMULAS[name]():
        np.testing.assert_allclose(exact(found), np.asarray(expected, np.float64), rtol=2e-4, atol=2e-5)


def test_every_equation_is_evaluated() -> None:
    evaluated = {*FORMULAS, *(name for names in ELSEWHERE.values() for name in names)}
    owed = {n for n, v in OBJECTS.items() if is_mathematical(v) and n not in EXEMPT["equation"]}
    nowhere = sorted(n for n in owed if not any(n == name or n.endswith(f".{name}") for name in evaluated))
    assert not nowhere, f"add a row to FORMULAS, or in ELSEWHERE the test that evaluates the equation of {nowhere}"
    unknown = sorted(name for name in evaluated if not any(n == name or n.endswith(f".{name}") for n in OBJECTS))
    assert not unknown, f"{unknown} are no public names"


@pytest.mark.parametrize("test", ELSEWHERE)
def test_the_test_elsewhere_exists(test: str) -> None:
    file, name = test.split("::")
    assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), flags=re.MULTILINE)
