"""Rules that fit most models: data parallel, fully sharded, tensor parallel, and their sums."""

import math
from collections.abc import Sequence

from jax.sharding import Mesh

from modulekit.core.patterns import parts_of
from modulekit.sharding.rules import Axes, Chain, Rule, mesh_axes

_PROJECTIONS = ("query", "key", "value")


class _Preset:
    """What presets have in common: they have no patterns that could go without a match."""

    def unmatched(self) -> Sequence[str]:
        """Returns nothing."""
        return ()

    def __add__(self, other: Rule) -> Chain:
        return Chain([self, other])  # type: ignore[list-item]

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"


class data_parallel(_Preset):  # noqa: N801 (reads as a function, and prints as one)
    """Each device has all variables, and a part of the batch (`split`).

    Source: Li et al., PyTorch Distributed, 2020, section 3.

    >>> from modulekit.sharding import make_mesh
    >>> data_parallel()("w", (4, 2), (None, None), make_mesh())
    (None, None)
    """

    def __call__(self, path: str, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> Axes:
        """Returns `axes` as they are, whatever `path`, `shape` and `mesh`."""
        return axes


class fully_sharded(_Preset):  # noqa: N801
    """Each device keeps a part of each variable, and so of its gradient and of the optimizer's slots.

    The longest axis that can be divided, and is whole so far, is divided; small variables stay whole.

    Args:
      axis: of the mesh, usually that of the batch.
      least: elements from which on a variable is divided.

    Source: Rajbhandari et al., ZeRO, 2020, stage 3; Zhao et al., PyTorch FSDP, 2023.

    >>> from modulekit.sharding import make_mesh
    >>> fully_sharded(least=1)("w", (4, 8), (None, None), make_mesh())
    (None, 'data')
    """

    def __init__(self, axis: str = "data", least: int = 2**12) -> None:
        self.axis = axis
        self.least = least

    def __call__(self, path: str, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> Axes:
        """Returns `axes` with one more divided, if `shape` is large and has one that `mesh` can divide, whatever `path`."""
        parts = mesh.shape.get(self.axis, 1)
        used = any(self.axis in mesh_axes(found) for found in axes)
        free = [k for k, found in enumerate(axes) if found is None and shape[k] % parts == 0 and shape[k] > 1]
        if used or self.axis not in mesh.shape or not free or math.prod(shape) < self.least:
            return axes
        longest = max(free, key=lambda k: (shape[k], -k))
        return tuple(self.axis if k == longest else found for k, found in enumerate(axes))


class tensor_parallel(_Preset):  # noqa: N801
    """The layers of an MLP and of attention work on parts of their units and heads.

    Of two layers in a row, the first one's outputs are divided and the second one's inputs, so that the devices talk to each
    other once for both: `query`, `key` and `value` of attention and then `output`; layers 0, 2, ... of an `MLP` and
    then 1, 3, ... Embeddings are divided by their vocabulary. An axis that cannot be divided stays whole.

    Args:
      axis: of the mesh.

    Source: Shoeybi et al., Megatron-LM, 2019, section 3.

    >>> from modulekit.sharding import make_mesh
    >>> mesh = make_mesh({"model": -1})
    >>> tensor_parallel()("attention.query.w", (8, 8), (None, None), mesh)
    (None, 'model')
    >>> tensor_parallel()("layers[1].w", (8, 8), (None, None), mesh)
    ('model', None)
    """

    def __init__(self, axis: str = "model") -> None:
        self.axis = axis

    def __call__(self, path: str, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> Axes:
        """Returns `axes` with that of a layer's units divided, as `path` says, where `mesh` can divide it in `shape`."""
        place = self._place(parts_of(path), len(shape))
        if (
            place is None
            or self.axis not in mesh.shape
            or axes[place] is not None
            or shape[place] % mesh.shape[self.axis]
        ):
            return axes
        return tuple(self.axis if k == place else found for k, found in enumerate(axes))

    def _place(self, parts: Sequence[str], rank: int) -> int | None:
        """Returns which axis of a variable is divided."""
        name, layer = parts[-1], parts[-2] if len(parts) > 1 else ""
        if name == "embeddings" and rank == 2:
            return 0
        is_second = layer == "output" or (layer.isdigit() and int(layer) % 2 == 1)
        is_first = layer in _PROJECTIONS or (layer.isdigit() and int(layer) % 2 == 0)
        if name == "w" and rank == 2 and (is_first or is_second):
            return 0 if is_second else 1
        return 0 if name == "b" and rank == 1 and is_first else None
