"""Modules in a purely functional style: Sonnet's `functional`, over any JAX transform."""

from modulekit.functional.functional_optimizers import adam, momentum, optimizer, rmsprop, sgd
from modulekit.functional.pure_functions import device_get, device_put, grad, jit, value_and_grad
from modulekit.functional.transformed import transform, transform_with_state, variables, without_state

__all__ = [
    "adam",
    "device_get",
    "device_put",
    "grad",
    "jit",
    "momentum",
    "optimizer",
    "rmsprop",
    "sgd",
    "transform",
    "transform_with_state",
    "value_and_grad",
    "variables",
    "without_state",
]
