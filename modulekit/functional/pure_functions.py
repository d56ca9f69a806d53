"""Transforms of pure functions, with the arguments that they have in Sonnet's `functional`."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from modulekit.core.devices import device_of
from modulekit.transforms import gradients
from modulekit.transforms import jit as compiling
from modulekit.transforms.arguments import is_traced
from modulekit.transforms.settle import plain


def device_put(t: Any, device: Any = None) -> Any:
    """Returns a structure with its arrays on a device.

    Args:
      t: any structure of arrays, such as params.
      device: a JAX device or sharding, or a name such as `GPU:1`; JAX's default device if None.

    Source: Sonnet 2, `snt.functional.device_put`.

    >>> device_put({"a": 1.0}, "cpu")["a"].devices() == {jax.local_devices(backend="cpu")[0]}
    True
    """
    return jax.device_put(plain(t), device_of(device) if isinstance(device, str) else device)


def device_get(t: Any) -> Any:
    """Returns a structure with NumPy arrays for its arrays.

    Args:
      t: any structure of arrays, such as params.

    Source: Sonnet 2, `snt.functional.device_get`.

    >>> device_get({"a": jax.numpy.ones([2])})["a"]
    array([1., 1.], dtype=float32)
    """
    return jax.device_get(plain(t))


def jit(f: Callable[..., Any], device: jax.Device | str | None = None) -> Callable[..., Any]:
    """Compiles a function, as `mk.jit` does: booleans and strings among the arguments are static.

    Args:
      f: a function of arrays, such as `apply`.
      device: where it runs: a JAX device, or a name such as `GPU:1`; where its arguments are if None.

    Returns:
      The compiled function.

    Source: Sonnet 2, `snt.functional.jit`.

    >>> float(jit(lambda x, y: x * y)(2.0, 3.0))
    6.0
    """
    compiled = compiling.jit(f)
    if device is None:
        return compiled
    target = device_of(device)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = jax.tree.map(
            lambda leaf: jax.device_put(leaf, target) if is_traced(leaf) else leaf, (args, kwargs)
        )
        with jax.default_device(target):
            return compiled(*args, **kwargs)

    return wrapped


def value_and_grad(f: Callable[..., Any], argnums: Any = 0, has_aux: bool = False) -> Callable[..., tuple[Any, Any]]:
    """Returns a function that computes `f` and its gradient with respect to arguments.

    Args:
      f: returns a scalar, or `(scalar, aux)` with `has_aux`.
      argnums: the position of an argument, or a tuple or list of positions.
      has_aux: whether `f` returns something beside the scalar.

    Returns:
      A function of `f`'s arguments that returns `(value, gradients)`, or `((value, aux), gradients)`; the gradients have the
      structure of `argnums`, and each that of its argument.

    Raises:
      TypeError: `argnums` is no position; on the call, the value is no floating-point scalar.
      IndexError: on the call, fewer positional arguments than `argnums` says.

    Source: Sonnet 2, `snt.functional.value_and_grad`. There a value that is no scalar is summed.

    >>> value, (for_x, for_y) = value_and_grad(lambda x, y: x * x * y, argnums=(0, 1))(2.0, 3.0)
    >>> float(value), float(for_x), float(for_y)
    (12.0, 12.0, 4.0)
    """
    places, structure = jax.tree.flatten(argnums)
    if argnums is None or not all(isinstance(place, int) for place in places):
        raise TypeError(f"argnums={argnums!r}: expected the position of an argument, or a tuple or list of positions")
    both = gradients.value_and_grad(f, None, has_aux, argnums=places)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if not all(-len(args) <= place < len(args) for place in places):
            raise IndexError(f"argnums={argnums!r} is out of range: the function got {len(args)} positional arguments")
        value, found = both(*args, **kwargs)
        return value, jax.tree.unflatten(structure, found)

    return wrapped


def grad(f: Callable[..., Any], argnums: Any = 0, has_aux: bool = False) -> Callable[..., Any]:
    """Returns a function that computes the gradient of `f` with respect to arguments.

    Args:
      f: as for `value_and_grad`.
      argnums: as for `value_and_grad`.
      has_aux: whether `f` returns `(scalar, aux)`.

    Returns:
      A function that returns the gradients as `value_and_grad` does, or `(gradients, aux)`.

    Source: Sonnet 2, `snt.functional.grad`.

    >>> float(grad(lambda x: x**3)(2.0))
    12.0
    """
    both = value_and_grad(f, argnums, has_aux)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        value, found = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return wrapped
