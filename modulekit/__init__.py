"""Sonnet's way of writing networks, on JAX."""

from modulekit import data, errors, initializers, losses, metrics, nets, optimizers
from modulekit.core.describe import format_variables, log_variables, summary
from modulekit.core.finite import find_nonfinite
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
from modulekit.core.variable import Variable
from modulekit.layers.dropout import Dropout
from modulekit.layers.linear import Linear
from modulekit.layers.sequential import Sequential
from modulekit.layers.stack import stack
from modulekit.metrics import Mean, Metric, Sum
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

__all__ = [
    "AUTO_REUSE",
    "Dropout",
    "Linear",
    "Mean",
    "Metric",
    "Module",
    "Optimizer",
    "RandomStream",
    "Sequential",
    "Sum",
    "Variable",
    "VariableScope",
    "VariableStore",
    "allow_empty_variables",
    "build",
    "cond",
    "data",
    "eager",
    "errors",
    "eval_shape",
    "find_nonfinite",
    "footprint",
    "fori_loop",
    "format_variables",
    "functionalize",
    "get_variable",
    "get_variable_scope",
    "grad",
    "hessian",
    "implicit_value_and_gradients",
    "initializers",
    "jit",
    "jvp",
    "log_variables",
    "losses",
    "metrics",
    "name_scope",
    "nets",
    "next_key",
    "no_name_scope",
    "once",
    "optimizers",
    "per_example_grad",
    "remat",
    "scan",
    "seed",
    "stack",
    "summary",
    "switch",
    "trial",
    "value_and_grad",
    "variable_scope",
    "vmap",
    "while_loop",
]
