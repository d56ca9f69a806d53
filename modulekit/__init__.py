"""Sonnet's way of writing networks, on JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from modulekit import (
    data,
    distribute,
    errors,
    functional,
    initializers,
    losses,
    metrics,
    mixed_precision,
    nets,
    optimizers,
    pad,
    regularizers,
    sharding,
)
from modulekit.averaging import WeightAverage
from modulekit.core.describe import format_variables, log_variables, summary
from modulekit.core.finite import find_nonfinite
from modulekit.core.getters import custom_variable_getter
from modulekit.core.methods import no_name_scope
from modulekit.core.module import Module, allow_empty_variables
from modulekit.core.names import name_scope
from modulekit.core.once import once
from modulekit.core.randomness import RandomStream, next_key, seed
from modulekit.core.sharing import (
    AUTO_REUSE,
    VariableScope,
    VariableStore,
    get_variable,
    get_variable_scope,
    variable_scope,
)
from modulekit.core.trial import trial
from modulekit.core.untouched import untouched
from modulekit.core.variable import Variable
from modulekit.layers.attention import MultiHeadAttention
from modulekit.layers.attention_cache import KeyValueCache
from modulekit.layers.batch_apply import BatchApply, merge_leading_dims, split_leading_dim
from modulekit.layers.batch_norm import BaseBatchNorm, BatchNorm
from modulekit.layers.bias import Bias
from modulekit.layers.conv import Conv1D, Conv2D, Conv3D
from modulekit.layers.conv_lstm import Conv1DLSTM, Conv2DLSTM, Conv3DLSTM
from modulekit.layers.conv_transpose import Conv1DTranspose, Conv2DTranspose, Conv3DTranspose
from modulekit.layers.deep_rnn import DeepRNN, deep_rnn_with_residual_connections, deep_rnn_with_skip_connections
from modulekit.layers.deferred import Deferred
from modulekit.layers.depthwise import DepthwiseConv2D
from modulekit.layers.dropout import Dropout
from modulekit.layers.embed import Embed
from modulekit.layers.gradient_rules import leaky_clip_by_value, scale_gradient
from modulekit.layers.group_norm import GroupNorm
from modulekit.layers.gru import GRU
from modulekit.layers.identity import Identity
from modulekit.layers.layer_norm import InstanceNorm, LayerNorm, RMSNorm
from modulekit.layers.linear import Linear
from modulekit.layers.lstm import LSTM, LSTMState
from modulekit.layers.normalized_weight import NormalizedWeight
from modulekit.layers.pool import AvgPool, MaxPool, avg_pool, max_pool
from modulekit.layers.positions import LearnedPositions, rotary
from modulekit.layers.recurrent_dropout import lstm_with_recurrent_dropout
from modulekit.layers.reshape import Flatten, Reshape, flatten, reshape
from modulekit.layers.rnn_core import RNNCore, UnrolledRNN
from modulekit.layers.sequential import Sequential
from modulekit.layers.spectral_norm import SpectralNorm
from modulekit.layers.stack import stack
from modulekit.layers.trainable_state import TrainableState
from modulekit.layers.unroll import dynamic_unroll, static_unroll
from modulekit.layers.unrolled_lstm import UnrolledLSTM
from modulekit.layers.vanilla_rnn import VanillaRNN
from modulekit.layers.weight_norm import WeightNorm
from modulekit.metrics import ExponentialMovingAverage, Mean, Metric, Sum
from modulekit.optimizers import Optimizer
from modulekit.transforms.batching import vmap
from modulekit.transforms.build import build, eval_shape, footprint
from modulekit.transforms.control import cond, switch
from modulekit.transforms.eager import eager
from modulekit.transforms.functionalize import functionalize
from modulekit.transforms.gradients import grad, implicit_value_and_gradients, value_and_grad
from modulekit.transforms.higher_order import hessian, jvp
from modulekit.transforms.jit import jit
from modulekit.transforms.loops import fori_loop, scan, while_loop
from modulekit.transforms.per_example import per_example_grad
from modulekit.transforms.remat import remat

if TYPE_CHECKING:
    from modulekit import export, sonnet, weights

__all__ = [
    "AUTO_REUSE",
    "GRU",
    "LSTM",
    "AvgPool",
    "BaseBatchNorm",
    "BatchApply",
    "BatchNorm",
    "Bias",
    "Conv1D",
    "Conv1DLSTM",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DLSTM",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DLSTM",
    "Conv3DTranspose",
    "DeepRNN",
    "Deferred",
    "DepthwiseConv2D",
    "Dropout",
    "Embed",
    "ExponentialMovingAverage",
    "Flatten",
    "GroupNorm",
    "Identity",
    "InstanceNorm",
    "KeyValueCache",
    "LSTMState",
    "LayerNorm",
    "LearnedPositions",
    "Linear",
    "MaxPool",
    "Mean",
    "Metric",
    "Module",
    "MultiHeadAttention",
    "NormalizedWeight",
    "Optimizer",
    "RMSNorm",
    "RNNCore",
    "RandomStream",
    "Reshape",
    "Sequential",
    "SpectralNorm",
    "Sum",
    "TrainableState",
    "UnrolledLSTM",
    "UnrolledRNN",
    "VanillaRNN",
    "Variable",
    "VariableScope",
    "VariableStore",
    "WeightAverage",
    "WeightNorm",
    "allow_empty_variables",
    "avg_pool",
    "build",
    "cond",
    "custom_variable_getter",
    "data",
    "deep_rnn_with_residual_connections",
    "deep_rnn_with_skip_connections",
    "distribute",
    "dynamic_unroll",
    "eager",
    "errors",
    "eval_shape",
    "export",
    "find_nonfinite",
    "flatten",
    "footprint",
    "fori_loop",
    "format_variables",
    "functional",
    "functionalize",
    "get_variable",
    "get_variable_scope",
    "grad",
    "hessian",
    "implicit_value_and_gradients",
    "initializers",
    "jit",
    "jvp",
    "leaky_clip_by_value",
    "log_variables",
    "losses",
    "lstm_with_recurrent_dropout",
    "max_pool",
    "merge_leading_dims",
    "metrics",
    "mixed_precision",
    "name_scope",
    "nets",
    "next_key",
    "no_name_scope",
    "once",
    "optimizers",
    "pad",
    "per_example_grad",
    "regularizers",
    "remat",
    "reshape",
    "rotary",
    "scale_gradient",
    "scan",
    "seed",
    "sharding",
    "sonnet",
    "split_leading_dim",
    "stack",
    "static_unroll",
    "summary",
    "switch",
    "trial",
    "untouched",
    "value_and_grad",
    "variable_scope",
    "vmap",
    "weights",
    "while_loop",
]


def __getattr__(name: str) -> Any:
    """Imports what most programs do without, when it is asked for: readers and writers of files."""
    if name in ("export", "sonnet", "weights"):
        return importlib.import_module(f"modulekit.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
