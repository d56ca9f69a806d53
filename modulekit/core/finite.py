"""Finding where values that are not finite come from.

While the switch is on, what goes into each module and what comes out passes a *tap*: an identity that counts nan and inf,
forward and backward, and tells Python. A tap hands its value on only when Python has been told, so that the reports arrive
in the order of cause and effect, and the first one names the place. A value that is not traced needs no tap: it is looked
at there and then, and handed on as it is. While the switch is off there is no tap, and programs are those that they would
be without this file.
"""

import contextlib
import functools
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.core import chain, context, foreign, names, overlay
from modulekit.errors import NonFiniteValueError


class Site:
    """A place where a tap sits.

    Args:
      forward: which code has produced a bad value that comes by in the forward pass, and what it is.
      backward: the same for the backward pass.
      module: the module that is called there, if one is.
      call: what is known of the call.
    """

    def __init__(self, forward: str, backward: str, module: Any = None, call: str = "") -> None:
        self._texts = {"forward": forward, "backward": backward}
        self._module = module
        self._call = call

    def report(self, direction: str, nans: int, infs: int, size: int) -> str:
        """Returns the message for a value that is not finite."""
        text = (
            f"{direction} pass of {self._texts[direction]}: {nans} nan and {infs} inf among {size} values.{self._call}"
        )
        for path, variable in (self._module.paths() if self._module is not None else {}).items():
            held = np.asarray(variable.stored())
            if jnp.issubdtype(held.dtype, jnp.inexact) and not np.isfinite(held).all():
                return f"{text} Its variable {path} holds {(~np.isfinite(held)).sum()} values that are not finite."
        return text


class _Switch(threading.local):
    forward_only = False


switch = _Switch()
_reports: list[Callable[[], str]] = []  # callbacks come from threads of XLA's


def is_on() -> bool:
    """Returns whether programs that are traced now get taps."""
    return context.thread.around.taps


@contextlib.contextmanager
def find_nonfinite() -> Iterator[None]:
    """Context in which a value that is not finite raises, naming the first module and pass that produced it.

    It works in eager code and in compiled steps, which compile once more for it, with the same results. A step that raises
    leaves all variables as they were. Where the context is not entered, it costs nothing.

    Raises:
      NonFiniteValueError: a module's input or output, a loss or a gradient has a nan or inf.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> with mk.find_nonfinite():
    ...     mk.Sequential([jnp.log, mk.Linear(2)])(jnp.zeros([1, 3]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    modulekit.errors.NonFiniteValueError: forward pass of Sequential(layers=[log, ...]), in the input of layers[1] ...
    """
    if not is_on():
        _reports.clear()
    with context.changed(taps=True):
        yield
        finish(())


@contextlib.contextmanager
def forward_only() -> Iterator[None]:
    """Context for forward-mode derivatives, which pass no tap that looks at the backward pass as well."""
    before, switch.forward_only = switch.forward_only, True
    try:
        yield
    finally:
        switch.forward_only = before


def finish(results: Any) -> None:
    """Waits for results, where nothing is traced, and raises the first report if there is one."""
    if not is_on() or overlay.active() is not None or not foreign.untraced():
        return
    jax.block_until_ready(jax.tree.leaves(results))
    if _reports:
        first = _reports[0]
        _reports.clear()
        raise NonFiniteValueError(first())


def run(method: Callable[..., Any], module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls a method of a module, with taps around it."""
    stack = names.frames()
    here, around = chain.place(module, stack), _around(module, stack)
    call = f" It was called with {chain.call_text(args, kwargs)}{chain.built_text(module)}."
    into = Site(f"{around}, in the input of {here}", f"{here}, in the gradient of its input", module, call)
    out = Site(f"{here}, in its output", f"{around}, in the gradient that reaches {here}", module, call)
    given = _Tapping(into)
    args, kwargs = given((args, kwargs))
    try:
        result = _Tapping(out)(method(module, *args, **kwargs))
    finally:
        given.hand_back()
    finish(result)
    return result


_OUTSIDE = "the code outside of all modules"


def _around(module: Any, stack: Sequence[names.Frame]) -> str:
    """Returns the module that calls `module`, for messages.

    One that does not hold `module` may just run a function of the user's, as an optimizer does with a loss.
    """
    callers = [frame.module for frame in stack if frame.module is not None and frame.module is not module]
    if not callers:
        return _OUTSIDE
    return "the code that calls it" if callers[-1].path_of(module) is None else chain.place(callers[-1], stack)


def look_at_loss(loss: Any) -> Any:
    """Returns a loss that has passed a tap."""
    return _look(jnp.asarray(loss), Site(f"{_OUTSIDE}, in the loss", f"{_OUTSIDE}, in the gradient of the loss"))


def look_at_gradients(gradients: Sequence[Any], described: Sequence[str]) -> list[Any]:
    """Returns gradients (of arguments: structures of them) that have been looked at, each with what it belongs to."""
    sites = [Site("", f"the code that uses {text}, in its gradient") for text in described]
    looks = [functools.partial(_look, site=site, direction="backward") for site in sites]
    return [jax.tree.map(look, gradient) for look, gradient in zip(looks, gradients, strict=True)]


class _Tapping:
    """Puts taps on the arrays in arguments or in a result.

    What holds nothing that is traced is handed on as it is. A list or dict that does is copied, and what a callee does to
    the copy is done to the original as well.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._copies: list[tuple[Any, Any, Any]] = []  # each with its original, and as it was made

    def __call__(self, value: Any) -> Any:
        """Returns a structure with a tap on each traced array."""
        kind = type(value)
        if kind is dict:
            return self._copied(value, dict(zip(value, map(self, value.values()), strict=True)))
        if kind is list:
            return self._copied(value, [self(item) for item in value])
        leaves, tree = jax.tree.flatten(value, is_leaf=lambda part: part is not value)
        if jax.tree_util.treedef_is_leaf(tree):
            return _look(value, self._site)
        tapped = [self(leaf) for leaf in leaves]
        return value if all(map(operator.is_, tapped, leaves)) else jax.tree.unflatten(tree, tapped)

    def _copied(self, original: Any, copy: Any) -> Any:
        if all(map(operator.is_, _held(copy), _held(original))):
            return original
        self._copies.append((copy, original, copy.copy()))
        return copy

    def hand_back(self) -> None:
        """Does to the originals what has been done to their copies."""
        originals = {id(copy): original for copy, original, _ in self._copies}
        for copy, original, made in self._copies:
            if len(copy) == len(made) and all(map(operator.is_, _held(copy), _held(made))):
                continue
            held = [originals.get(id(item), item) for item in _held(copy)]
            original.clear()
            original.update(zip(copy, held, strict=True)) if isinstance(original, dict) else original.extend(held)


def _held(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def _look(value: Any, site: Site, direction: str = "forward") -> Any:
    """Returns a value that has been looked at, if it is one that can be bad."""
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
    if not is_array or not jnp.issubdtype(value.dtype, jnp.inexact) or value.size == 0:
        return value
    if isinstance(value, jax.core.Tracer):
        if direction == "forward" and not switch.forward_only:
            return _tap(jnp.copy(value), site)  # a lane of a NumPy array would be a constant, which JAX refuses there
        return _looked_at(value, site, direction)[0]
    with overlay.concrete():
        count = _counts if isinstance(value, jax.Array) else _counts_of_numpy
        _report(site, direction, value.size, count(value))
    return value


def _counts(x: Any) -> Any:
    return jnp.stack([jnp.isnan(x).sum(), jnp.isinf(x).sum()]).astype(jnp.int32)


def _counts_of_numpy(x: Any) -> Any:
    return [np.isnan(x).sum(), np.isinf(x).sum()]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _tap(x: Any, site: Site) -> Any:
    return _looked_at(x, site, "forward")[0]


def _tap_forward(x: Any, site: Site) -> tuple[Any, Any]:
    return _looked_at(x, site, "forward")


def _tap_backward(site: Site, told: Any, gradient: Any) -> tuple[Any]:
    return (_looked_at(_after(told, gradient), site, "backward")[0],)


_tap.defvjp(_tap_forward, _tap_backward)


def _looked_at(x: Any, site: Site, direction: str) -> tuple[Any, Any]:
    """Returns `x` after Python has been told of its nans and infs, and the counts that it was told."""
    report = functools.partial(_report, site, direction, x.size)
    form = jax.ShapeDtypeStruct((2,), jnp.int32)
    told = jax.pure_callback(report, form, _counts(x), vmap_method="broadcast_all")
    return _after(told, x), told


def _after(told: Any, x: Any) -> Any:
    """Returns `x`; it cannot be had before Python has been told, since XLA does not know that counts are never negative."""
    return jnp.where(told[0] >= 0, x, jnp.zeros_like(x))


def _report(site: Site, direction: str, size: int, counts: Any) -> Any:
    lanes = np.asarray(counts).reshape(-1, 2)
    nans, infs = (int(count) for count in lanes.sum(axis=0))
    if nans or infs:
        _reports.append(functools.partial(site.report, direction, nans, infs, size * len(lanes)))
    return counts
