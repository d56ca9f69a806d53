"""Data parallelism: a training step on several devices, each with its part of the batch."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from modulekit.core.devices import device_of
from modulekit.core.variable import Variable
from modulekit.distribute.per_replica import DistributedDataset, PerReplica, is_per_replica
from modulekit.transforms.arguments import is_traced
from modulekit.transforms.replicas import AXIS, ReplicaContext, Rules, checked_op, in_context, run_on_replicas
from modulekit.transforms.settle import plain

F = TypeVar("F", bound=Callable[..., Any])


class ValueContext(NamedTuple):
    """What `experimental_distribute_values_from_function` tells the function.

    Attributes:
      replica_id_in_sync_group: for which replica the value is, from 0.
      num_replicas_in_sync: how many there are.
    """

    replica_id_in_sync_group: int
    num_replicas_in_sync: int


class Replicator:
    """Runs a function on several devices of this machine at once, each with its own part of the data.

    The replicas start a run with the same variables and end it with the same variables. A new value that each of them has
    computed from its own data is an error for a trainable variable: reduce the gradients first. Of the other variables
    (moving averages) the first replica's value is kept, unless `writes` says otherwise. Each replica draws random
    numbers of its own. With one device, `run` just calls the function.

    Args:
      devices: JAX devices, or names such as `GPU:0`; all of this process if None.
      writes: how the replicas' values of a variable become one, for all or by variable or module: the "mean" of the new
        values, the "sum" of the changes, added to the old value, or the "first" replica's value.

    Raises:
      ValueError: there is no such device, or one comes twice.

    Source: Sonnet 2, `snt.distribute.Replicator`. There the replicas' variables may drift apart, and the first one's are
    read. A compiled function around `run` (`mk.jit`) saves compiling it for each call.

    >>> import modulekit as mk
    >>> replicator = mk.distribute.Replicator()
    >>> with replicator.scope():
    ...     w, optimizer = mk.Variable(1.0, name="w"), mk.optimizers.SGD(0.1)
    >>> @mk.jit
    ... def step(x):
    ...     def on_replica(x):
    ...         loss, gradients = mk.value_and_grad(lambda: (w * x).mean(), [w])()
    ...         gradients = mk.distribute.get_replica_context().all_reduce("mean", gradients)
    ...         optimizer.apply(gradients, [w])
    ...         return loss
    ...     return replicator.reduce("mean", replicator.run(on_replica, args=(x,)))
    >>> [float(step(batch)) for batch in replicator.experimental_distribute_dataset([jnp.full([8], 2.0)])], float(w)
    ([2.0], 0.800000011920929)
    """

    def __init__(self, devices: Sequence[jax.Device | str] | None = None, *, writes: Rules = None) -> None:
        chosen = jax.local_devices() if devices is None else [device_of(device) for device in devices]
        if len(set(chosen)) < max(1, len(chosen)):
            raise ValueError(f"a Replicator needs one or more devices, each once, and got {chosen}")
        self._chosen = devices is not None
        self._mesh = Mesh(np.array(chosen), (AXIS,))
        self._writes = writes

    @property
    def num_replicas_in_sync(self) -> int:
        """How many replicas there are, one for each device."""
        return int(self._mesh.size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self._mesh.devices.flat)})"

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Context in which models and optimizers are made; no replica runs in it, so that layers that need one refuse.

        Variables made elsewhere are replicated as well, on the first run that uses them.
        """
        with in_context(None):
            yield

    def run(self, fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Calls a function on every replica.

        Args:
          fn: a function that may read and write variables, the same on each replica.
          args: its arguments. Of a `PerReplica`, each replica gets its own array; everything else each gets as it is.
          kwargs: its keyword arguments, likewise.

        Returns:
          What `fn` returns, with a `PerReplica` for each array; with one device, just what it returns.

        Raises:
          ValueError: each replica writes a value of its own to a trainable variable; no variable has changed.
        """
        kwargs = kwargs or {}
        if self.num_replicas_in_sync == 1:
            with in_context(ReplicaContext(1)), self._on_the_device():
                return fn(*args, **kwargs)
        leaves, tree = jax.tree.flatten((tuple(args), kwargs), is_leaf=is_per_replica)
        kinds = ["own" if is_per_replica(leaf) else "shared" if is_traced(leaf) else "static" for leaf in leaves]

        def on_replica(own: list[Any], shared: list[Any]) -> Any:
            sources = {"own": iter(own), "shared": iter(shared), "static": iter(static)}
            args, kwargs = jax.tree.unflatten(tree, [next(sources[kind]) for kind in kinds])
            return fn(*args, **kwargs)

        own = [self._checked(leaf) for leaf in leaves if is_per_replica(leaf)]
        shared = [leaf for leaf, kind in zip(leaves, kinds, strict=True) if kind == "shared"]
        static = [leaf for leaf, kind in zip(leaves, kinds, strict=True) if kind == "static"]
        return jax.tree.map(PerReplica, run_on_replicas(on_replica, self._mesh, own, shared, self._writes))

    def reduce(self, reduce_op: str, value: Any, axis: int | None = None) -> Any:
        """Returns the sum or the mean over the replicas.

        Args:
          reduce_op: "sum" or "mean".
          value: what `run` returned, any structure.
          axis: an axis of the replicas' arrays that is reduced as well, such as 0 for the batch.

        Raises:
          ValueError: another operation, or the sum of a value that no replica has of its own.
        """
        reduction = getattr(jnp, checked_op(reduce_op))

        def reduced(leaf: Any) -> Any:
            if isinstance(leaf, PerReplica):
                inner = () if axis is None else (axis if axis < 0 else axis + 1,)
                return reduction(leaf.stacked, axis=(0, *inner))
            if self.num_replicas_in_sync > 1 and reduction is jnp.sum:
                raise ValueError(f"{leaf!r} is the same for all replicas, and has no sum: give what `run` returned")
            return leaf if axis is None else reduction(jnp.asarray(leaf), axis=axis)

        return jax.tree.map(reduced, plain(value), is_leaf=is_per_replica)

    def experimental_local_results(self, value: Any) -> tuple[Any, ...]:
        """Returns each replica's part of what `run` returned; for a variable, the value that each replica reads."""
        if self.num_replicas_in_sync == 1:
            return (value,)
        if isinstance(value, Variable):
            return (value.value,) * self.num_replicas_in_sync

        def part(replica: int) -> Any:
            return jax.tree.map(
                lambda leaf: leaf.stacked[replica] if is_per_replica(leaf) else leaf, value, is_leaf=is_per_replica
            )

        return tuple(map(part, range(self.num_replicas_in_sync)))

    def experimental_distribute_dataset(self, dataset: Iterable[Any]) -> Iterable[Any]:
        """Returns batches that are split among the replicas, in equal parts along the first axis of each array.

        Args:
          dataset: an iterable of structures of arrays `[batch, ...]`.

        Raises:
          ValueError: on the way, if a batch has no equal parts.
        """
        return dataset if self.num_replicas_in_sync == 1 else DistributedDataset(dataset, self._mesh)

    def experimental_distribute_values_from_function(self, value_fn: Callable[[ValueContext], Any]) -> Any:
        """Returns the values that a function gives for the replicas, as one `PerReplica` for each array.

        Args:
          value_fn: a function of a `ValueContext` that returns arrays of the same shapes for each replica.
        """
        count = self.num_replicas_in_sync
        values = [value_fn(ValueContext(replica, count)) for replica in range(count)]
        if count == 1:
            return values[0]
        place = NamedSharding(self._mesh, Spec(AXIS))
        return jax.tree.map(lambda *parts: PerReplica(jax.device_put(np.stack(parts), place)), *values)

    def _on_the_device(self) -> contextlib.AbstractContextManager[Any]:
        return jax.default_device(self._mesh.devices.flat[0]) if self._chosen else contextlib.nullcontext()

    def _checked(self, value: PerReplica) -> Any:
        if value.stacked.shape[0] != self.num_replicas_in_sync:
            raise ValueError(
                f"{self!r} has {self.num_replicas_in_sync} replicas, and an argument has values for {value.stacked.shape[0]}"
            )
        return value.stacked


class TpuReplicator(Replicator):
    """`Replicator` over TPUs.

    Args:
      devices: JAX devices, or names such as `TPU:0`; all TPUs of this process if None.
      writes: as for `Replicator`.

    Raises:
      RuntimeError: there is no TPU.

    Source: Sonnet 2, `snt.distribute.TpuReplicator`, which takes a cluster resolver: JAX has found the TPUs by itself.

    >>> has_tpu = any(device.platform == "tpu" for device in jax.local_devices())
    >>> TpuReplicator().num_replicas_in_sync > 0 if has_tpu else "no TPU here"
    'no TPU here'
    """

    def __init__(self, devices: Sequence[jax.Device | str] | None = None, *, writes: Rules = None) -> None:
        tpus = [device for device in jax.local_devices() if device.platform == "tpu"]
        if not tpus:
            raise RuntimeError(
                f"TpuReplicator needs a TPU, and this process has {jax.local_devices()}: use Replicator, which runs on any "
                "devices"
            )
        super().__init__(tpus if devices is None else devices, writes=writes)


def create_variables_eagerly(f: F) -> F:
    """Decorates a function that makes variables on its first call.

    Here variables are made of arrays under any trace, so that the function is returned as it is.

    Args:
      f: any function.

    Source: Sonnet 2, `snt.distribute.create_variables_eagerly`.

    >>> import modulekit as mk
    >>> layer = mk.Linear(2)
    >>> mk.jit(create_variables_eagerly(lambda x: layer(x)))(jnp.ones([1, 3])).shape
    (1, 2)
    """
    return f
