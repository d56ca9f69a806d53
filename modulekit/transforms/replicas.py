"""Replicas: one function on several devices at once, each with its own part of the data, as one program.

Every replica starts from the same values of the variables. A new value that is computed only from such values and from
reductions over the replicas is the same on all of them. Which ones are is found out before the program is compiled: the
function is traced as a `jax.vmap` over the replicas, which knows what has lanes. So a gradient that nobody has reduced is
noticed where it would let the weights drift apart, and costs nothing where it does not.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from modulekit.core.module import Module
from modulekit.core.streams import stream_of
from modulekit.core.variable import Variable
from modulekit.transforms.arguments import hold, release
from modulekit.transforms.batching import RULES, lane_key
from modulekit.transforms.settle import Footprint, Unsettled, listed, plain, values_of

AXIS = "replicas"
MergeRule = Literal["mean", "sum", "first"]
Rules = MergeRule | Mapping[Variable | Module, MergeRule] | None
_MERGES: dict[str, Callable[[Any, Any], Any]] = {
    "mean": RULES["mean"],
    "sum": RULES["sum"],
    "first": lambda old, replicas: replicas[0],
}
_log = logging.getLogger("modulekit")


class ReplicaContext(NamedTuple):
    """What a function knows of the replicas that run it.

    Attributes:
      num_replicas_in_sync: how many there are; 1 outside of `Replicator.run`.
    """

    num_replicas_in_sync: int

    @property
    def replica_id_in_sync_group(self) -> Any:
        """The number of this replica, from 0: an integer scalar, traced where there are several."""
        return jax.lax.axis_index(AXIS) if self.num_replicas_in_sync > 1 else 0

    def all_reduce(self, reduce_op: str, value: Any) -> Any:
        """Returns the sum or the mean over the replicas, the same on each of them.

        Args:
          reduce_op: "sum" or "mean".
          value: any structure of arrays, such as a list of gradients; None stays None.

        Raises:
          ValueError: another operation.
        """
        reduction: Any = jax.lax.psum if checked_op(reduce_op) == "sum" else jax.lax.pmean
        if self.num_replicas_in_sync == 1:
            return plain(value)
        return jax.tree.map(lambda leaf: reduction(leaf, AXIS), plain(value))


class _Current(threading.local):
    context: ReplicaContext | None = ReplicaContext(1)


_current = _Current()


def get_replica_context() -> ReplicaContext | None:
    """Returns the context of the running replica; None inside `Replicator.scope`, where no replica runs.

    Source: TensorFlow, `tf.distribute.get_replica_context`.

    >>> import modulekit as mk
    >>> mk.distribute.get_replica_context().all_reduce("mean", 3.0)
    3.0
    """
    return _current.context


@contextlib.contextmanager
def in_context(context: ReplicaContext | None) -> Iterator[None]:
    """Context in which `get_replica_context` returns `context`."""
    before, _current.context = _current.context, context
    try:
        yield
    finally:
        _current.context = before


def checked_op(reduce_op: str) -> str:
    """Returns "sum" or "mean", whatever the case of its letters; raises `ValueError` for anything else."""
    name = str(reduce_op).lower()
    if name not in ("sum", "mean"):
        raise ValueError(f"replicas are reduced by 'sum' or 'mean', not by {reduce_op!r}")
    return name


def run_on_replicas(
    fn: Callable[[list[Any], list[Any]], Any], mesh: Mesh, own: list[Any], shared: list[Any], writes: Rules
) -> Any:
    """Runs a function once on each device of a mesh, and writes what it has written to variables.

    Args:
      fn: the function of a replica's own arrays and of the shared ones.
      mesh: the devices, along one axis named `AXIS`.
      own: arrays `[replicas, ...]`, one part for each replica.
      shared: arrays that each replica gets as they are.
      writes: how different values of a variable become one.

    Returns:
      What `fn` returns, with the replicas' arrays stacked along a first axis.
    """
    footprint = Footprint()
    own, shared = _on_mesh(own, mesh, Spec(AXIS)), _on_mesh(shared, mesh, Spec())

    def attempt() -> Any:
        written = list(footprint.writes)
        known = [*written, *(v for v in footprint.reads if v not in footprint.writes)]
        replica = _replica(fn, mesh.size, footprint, known, written)
        values = _on_mesh(values_of(known), mesh, Spec())
        differ = _differing(replica, mesh.size, own, values, shared)
        merges = [_merge_of(v, writes) if d else None for v, d in zip(written, differ, strict=True)]
        out_specs = (Spec(AXIS), [Spec(AXIS) if d else Spec() for d in differ])

        def shard(own: list[Any], values: list[Any], shared: list[Any]) -> Any:
            result, new = replica([x[0] for x in own], values, shared)
            each = [x[None] if d else x for x, d in zip(new, differ, strict=True)]
            return jax.tree.map(lambda x: jnp.asarray(x)[None], result), each

        def program(own: list[Any], values: list[Any], shared: list[Any]) -> Any:
            specs = (Spec(AXIS), Spec(), Spec())
            mapped = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
            result, new = mapped(own, values, shared)
            everywhere = NamedSharding(mesh, Spec())
            for place, (merge, old) in enumerate(zip(merges, values[: len(written)], strict=True)):
                if merge is not None:
                    new[place] = jax.lax.with_sharding_constraint(merge(old, new[place]), everywhere)
            return result, new

        result, new = jax.jit(program)(own, values, shared)
        footprint.commit(written, new)
        return release(result)

    return footprint.settle(attempt, "distribute.Replicator.run")


def _on_mesh(arrays: list[Any], mesh: Mesh, spec: Spec) -> list[Any]:
    """Returns arrays that lie on the devices of a mesh; what is traced will be put there by the program."""
    place = NamedSharding(mesh, spec)
    return [x if isinstance(x, jax.core.Tracer) else jax.device_put(x, place) for x in arrays]


def _replica(
    fn: Callable[..., Any], count: int, footprint: Footprint, known: Sequence[Variable], written: Sequence[Variable]
) -> Callable[[list[Any], list[Any], list[Any]], tuple[Any, list[Any]]]:
    """Returns the function of one replica: of its arrays, the variables' values, and the shared arrays."""
    streams = [stream for stream in map(stream_of, written) if stream is not None]

    def replica(own: list[Any], values: list[Any], shared: list[Any]) -> tuple[Any, list[Any]]:
        bindings = dict(zip(known, values, strict=True))
        keys = {stream.key: bindings[stream.key] for stream in streams if stream.key in bindings}
        bindings |= {key: lane_key(value, jax.lax.axis_index(AXIS)) for key, value in keys.items()}
        try:
            with in_context(ReplicaContext(count)), footprint.overlay(bindings, collects_reads=True) as running:
                result = hold(plain(fn(own, shared)))
                footprint.check(running, reads=True)
        except Unsettled:
            footprint.isolated = True  # a plain JAX transform inside may read variables
            raise
        return result, [running.values[v] for v in written]

    return replica


def _differing(
    replica: Callable[..., Any], count: int, own: list[Any], values: list[Any], shared: list[Any]
) -> list[bool]:
    """Returns which of the new values may differ between replicas. Nothing is computed."""
    found: list[list[bool]] = []

    @jax.custom_batching.custom_vmap
    def probe(new: list[Any]) -> list[Any]:
        return new

    @probe.def_vmap
    def look(size: int, in_batched: Any, new: list[Any]) -> Any:
        found.append(in_batched[0])
        return new, in_batched[0]

    def lane(own: list[Any], values: list[Any], shared: list[Any]) -> Any:
        _, new = replica(own, values, shared)
        return probe(new)

    new = jax.eval_shape(jax.vmap(lane, (0, None, None), axis_name=AXIS, axis_size=count), own, values, shared)
    return found[0] if found else [False] * len(new)  # where nothing has lanes, JAX does not ask


def _merge_of(written: Variable, writes: Rules) -> Callable[[Any, Any], Any]:
    stream = stream_of(written)
    if stream is not None:  # past the draws of all replicas: under `cond`, some draw more than others
        return lambda old, replicas: old if written is stream.key else replicas.max(axis=0)
    if isinstance(writes, Mapping):
        rule = next((rule for target, rule in writes.items() if written in listed([target])), None)
    else:
        rule = writes
    if rule is None and not written.trainable:
        _log.info(
            "of %s, which each replica writes with a value of its own, the first one's is kept", written.describe()
        )
        rule = "first"
    if rule not in _MERGES:
        said = "" if rule is None else f" The rule {rule!r} is none."
        raise ValueError(
            f"{written.describe()} is written by each replica with a value of its own.{said} Reduce what it is computed "
            "from, as in gradients = mk.distribute.get_replica_context().all_reduce('mean', gradients), or say in "
            "Replicator(writes=...) how the values become one: 'mean', 'sum' or 'first'"
        )
    return _MERGES[rule]
