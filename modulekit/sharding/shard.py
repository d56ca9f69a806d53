"""Putting variables where rules say, those that exist and those that are made."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from modulekit.core import births, collect, overlay, storage
from modulekit.core.module import Module, modules_in
from modulekit.core.variable import Variable
from modulekit.sharding.report import ShardingReport, entry_of
from modulekit.sharding.rules import Rule, spec_of
from modulekit.transforms import build as builds


def shard(parts: Any, rules: Rule, mesh: Mesh) -> ShardingReport:
    """Moves the variables of a model to the devices of a mesh, each as the rules say; their values stay as they are.

    Compiled functions then keep them there. Slots that an optimizer makes for a variable lie as it does; what exists already
    is moved as well if the optimizer is given: `shard({"model": model, "optimizer": optimizer}, rules, mesh)`. Of a module
    with a method `slot_owners()`, which returns the variable that each of its slots belongs to, the slots lie as these do.

    Args:
      parts: a module, or modules by name or in a list; paths begin with the name then.
      rules: `Rules`, a preset, or a sum of such.
      mesh: the devices.

    Returns:
      How each variable lies, and which patterns fitted none: print it.

    Raises:
      ValueError: a spec does not fit a shape, or the mesh. Nothing has moved.
      RuntimeError: inside a transform.

    >>> import modulekit as mk
    >>> model = mk.nets.MLP([8, 2])
    >>> _ = mk.build(model, [1, 4])
    >>> from modulekit.sharding import data_parallel, make_mesh
    >>> print(shard(model, data_parallel(), make_mesh()))
    | Path        | Shape  | Spec | Bytes per device |
    |-------------+--------+------+------------------|
    | layers[0].b | [8]    | P()  | 32               |
    | layers[0].w | [4, 8] | P()  | 128              |
    | layers[1].b | [2]    | P()  | 8                |
    | layers[1].w | [8, 2] | P()  | 64               |
    232 of 232 bytes on each of 1 devices (data 1)
    """
    if overlay.active() is not None:
        raise RuntimeError("shard was called inside a transform: call it between two steps")
    paths = {variable: path for path, variable in _paths(parts)}
    owners = {slot: owner for slot, owner in _owners(parts) if owner in paths and owner.shape == slot.shape}
    placed = {
        variable: (path, spec_of(rules, paths[owners.get(variable, variable)], variable.shape, mesh))
        for variable, path in paths.items()
    }
    for variable, (_, spec) in placed.items():
        storage.place(variable, NamedSharding(mesh, spec))
    entries = [entry_of(path, v.shape, v.dtype.itemsize, spec, mesh) for v, (path, spec) in placed.items()]
    return ShardingReport(mesh, entries, rules.unmatched())


def build(
    model: Callable[..., Any], *args: Any, rules: Rule, mesh: Mesh, parts: Any = None, **kwargs: Any
) -> ShardingReport:
    """Makes the variables of a model from the shapes of its inputs, each part on the device on which it is to lie.

    What a method under `once` computes is compiled, and its results come out divided, so that the model may be larger than
    the memory of a device. The values are those of `mk.build`, up to the last bits, for any number of devices.

    Args:
      model: a module, or a function that calls modules.
      *args: its inputs, as for `mk.build`.
      rules: as for `shard`.
      mesh: the devices.
      parts: what paths begin at, as for `shard`; the model if None.
      **kwargs: as for `mk.build`.

    Returns:
      How each variable lies.

    Raises:
      ValueError: as for `shard`.

    Source: JAX, `jax.jit` with `out_shardings` around an initializer, over variables.

    >>> import modulekit as mk
    >>> model = mk.Linear(8)
    >>> from modulekit.sharding import fully_sharded, make_mesh
    >>> report = build(model, [1, 4], rules=fully_sharded(least=1), mesh=make_mesh())
    >>> [entry.spec for entry in report.entries], model.w.shape
    ([P('data',), P(None, 'data')], (4, 8))
    """
    roots = model if parts is None else parts
    with placing(roots, rules, mesh):
        builds.build(model, *args, **kwargs)
    rules.unmatched()  # paths are whole only now
    return shard(roots, rules, mesh)


@contextlib.contextmanager
def placing(parts: Any, rules: Rule, mesh: Mesh) -> Iterator[None]:
    """Context in which variables made under `once` are made where they are to lie; `build` is the usual way to it.

    The table of an `Embed`, which its constructor makes, is so as well. Of a module that is not whole yet, the rules see the
    names of variables, with slashes, in place of paths: `with placing(None, rules, mesh): model = mk.nets.Transformer(...)`.

    Args:
      parts: what paths begin at, as for `shard`; None where there is nothing yet.
      rules: as for `shard`.
      mesh: the devices.

    >>> import modulekit as mk
    >>> from modulekit.sharding import fully_sharded, make_mesh
    >>> model = mk.Linear(8)
    >>> with placing(model, fully_sharded(), make_mesh()):
    ...     model(jax.numpy.ones([2, 4])).shape
    (2, 8)
    """

    def place(variable: Variable) -> jax.sharding.Sharding:
        path = next((path for path, found in _paths(parts) if found is variable), variable.name)
        return NamedSharding(mesh, spec_of(rules, path, variable.shape, mesh))

    with births.placement(place):
        yield


def _owners(parts: Any) -> Iterator[tuple[Variable, Variable]]:
    """Yields each slot and the variable that it belongs to."""
    for module in modules_in(list(parts.values()) if isinstance(parts, Mapping) else parts):
        slot_owners = getattr(module, "slot_owners", None)
        if slot_owners is not None:
            yield from slot_owners().items()


def _paths(parts: Any) -> Iterator[tuple[str, Variable]]:
    """Yields path and variable, each variable once."""
    seen: set[Variable] = set()
    for name, part in parts.items() if isinstance(parts, Mapping) else [("", parts)]:
        start: collect.Path = (("attribute", name),) if name else ()
        found = [(start, part)] if isinstance(part, Variable) else collect.walk(part, Variable, Module, start)
        for path, variable in found:
            if variable not in seen:
                seen.add(variable)
                yield collect.render(path), variable
