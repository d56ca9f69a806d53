"""Finding where values that are not finite come from.

While the switch is on, what goes into each module and what comes out passes a *tap*: an identity that counts nan and inf,
forward and backward, and tells Python. A tap hands its value on only when Python has been told, so that the reports arrive
in the order of cause and effect, and the first one names the place. While the switch is off there is no tap, and programs
are those that they would be without this file.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.core import chain, foreign, names, overlay
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
    on = False


_switch = _Switch()
_reports: list[Callable[[], str]] = []  # callbacks come from threads of XLA's


def is_on() -> bool:
    """Returns whether programs that are traced now get taps."""
    return _switch.on


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
    before, _switch.on = _switch.on, True
    _reports.clear()
    try:
        yield
        finish(())
    finally:
        _switch.on = before


def finish(results: Any) -> None:
    """Waits for results, where nothing is traced, and raises the first report if there is one."""
    if not _switch.on or overlay.active() is not None or not foreign.untraced():
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
    args, kwargs = _tapped((args, kwargs), into)
    result = _tapped(method(module, *args, **kwargs), out)
    finish(result)
    return result


_OUTSIDE = "the code outside of all modules"


def _around(module: Any, stack: Sequence[names.Frame]) -> str:
    """Returns the module that calls `module`, for messages."""
    callers = [frame for frame in stack if frame.module is not None and frame.module is not module]
    return chain.place(callers[-1].module, stack) if callers else _OUTSIDE


def look_at_loss(loss: Any) -> Any:
    """Returns a loss that has passed a tap."""
    return _tapped(jnp.asarray(loss), Site(f"{_OUTSIDE}, in the loss", f"{_OUTSIDE}, in the gradient of the loss"))


def look_at_gradients(gradients: Sequence[Any], described: Sequence[str]) -> list[Any]:
    """Returns gradients that have been looked at, each with the variable it belongs to."""
    sites = [Site("", f"the code that uses {text}, in its gradient") for text in described]
    return [_looked_at(g, site, "backward")[0] for g, site in zip(gradients, sites, strict=True)]


def _tapped(tree: Any, site: Site) -> Any:
    return jax.tree.map(lambda leaf: _tap(leaf, site) if _can_be_bad(leaf) else leaf, tree)


def _can_be_bad(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size > 0


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
    x = jnp.asarray(x)
    counts = jnp.stack([jnp.isnan(x).sum(), jnp.isinf(x).sum()]).astype(jnp.int32)
    report = functools.partial(_report, site, direction, x.size)
    told = jax.pure_callback(report, jax.ShapeDtypeStruct((2,), jnp.int32), counts, vmap_method="broadcast_all")
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
