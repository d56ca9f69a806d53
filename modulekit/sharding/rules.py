"""Rules: from the path and shape of a variable to its partition spec."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from jax.sharding import Mesh, PartitionSpec

from modulekit.core.patterns import matches

Axes: TypeAlias = tuple[Any, ...]  # for each axis of an array a mesh axis, a tuple of them, or None


class Rule(Protocol):
    """What says how a variable lies."""

    def __call__(self, path: str, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> Axes:
        """Returns along which mesh axes each axis of a variable is divided.

        Args:
          path: of the variable in what is sharded, such as `layers[0].w`.
          shape: its shape.
          axes: what earlier rules have said: a mesh axis, several in a tuple, or None for each axis of the variable.
          mesh: the mesh.
        """
        ...

    def unmatched(self) -> Sequence[str]:
        """Returns the patterns that no variable has fitted since the last call, and forgets them all."""
        ...


class Rules:
    """Rules by patterns of paths, and other rules one after the other.

    Each variable takes the spec of the first pattern that it fits. What no pattern fits stays as a whole on each device.

    Args:
      specs: a partition spec, or a tuple with a mesh axis or None for each axis, by pattern: `encoder/**` for everything in
        the encoder, `**/w` for every weight. A spec may be shorter than a shape; a tuple of mesh axes divides by all.

    >>> from jax.sharding import PartitionSpec as P
    >>> rules = Rules({"**/embeddings": P("model"), "**/w": (None, "model")})
    >>> rules + Rules({"**/b": P("model")})
    Rules({'**/embeddings': P('model',), '**/w': P(None, 'model')}) + Rules({'**/b': P('model',)})
    """

    def __init__(self, specs: Mapping[str, Any]) -> None:
        self._specs = {pattern: PartitionSpec(*spec) for pattern, spec in specs.items()}
        self._met: set[str] = set()

    def __call__(self, path: str, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> Axes:
        """Returns the axes of the first pattern that fits `path`, for those of `shape` that `axes` leave whole on `mesh`."""
        for pattern, spec in self._specs.items():
            if matches(pattern, path):
                self._met.add(pattern)
                if len(spec) > len(shape):
                    raise ValueError(
                        f"the spec {spec} of {pattern!r} has more axes than {path} {list(shape)}: write a pattern that fits "
                        "only variables of its rank"
                    )
                wanted = (*spec, *[None] * (len(shape) - len(spec)))
                return tuple(old if old is not None else new for old, new in zip(axes, wanted, strict=True))
        return axes

    def unmatched(self) -> Sequence[str]:
        """Returns the patterns that no variable has fitted since the last call."""
        found = [pattern for pattern in self._specs if pattern not in self._met]
        self._met.clear()
        return found

    def __add__(self, other: Rule) -> "Chain":
        return Chain([self, other])

    def __repr__(self) -> str:
        return f"Rules({self._specs})"


class Chain:
    """Rules one after the other: each divides what those before have left whole.

    Args:
      rules: the rules.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = list(rules)

    def __call__(self, path: str, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> Axes:
        """Returns the axes after all rules."""
        for rule in self._rules:
            axes = rule(path, shape, axes, mesh)
        return axes

    def unmatched(self) -> Sequence[str]:
        """Returns the patterns of all rules that no variable has fitted since the last call."""
        return [pattern for rule in self._rules for pattern in rule.unmatched()]

    def __add__(self, other: Rule) -> "Chain":
        return Chain([*self._rules, other])

    def __repr__(self) -> str:
        return " + ".join(map(repr, self._rules))


def mesh_axes(axes: Any) -> tuple[str, ...]:
    """Returns the mesh axes that one axis of an array is divided by."""
    if axes is None:
        return ()
    return tuple(axes) if isinstance(axes, tuple | list) else (axes,)


def spec_of(rule: Rule, path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns the partition spec of a variable.

    Raises:
      ValueError: there is no such mesh axis, one is used twice, or it does not divide the variable's axis.
    """
    axes = rule(path, shape, (None,) * len(shape), mesh)
    used: list[str] = []
    for axis, (size, names) in enumerate(zip(shape, map(mesh_axes, axes), strict=True)):
        parts = 1
        for name in names:
            if name not in mesh.shape:
                raise ValueError(
                    f"{path} is to be divided along {name!r}, and the mesh has the axes {list(mesh.shape)}"
                )
            if name in used:
                raise ValueError(f"{path} is to be divided along {name!r} twice: {axes}")
            used.append(name)
            parts *= mesh.shape[name]
        if size % parts:
            raise ValueError(
                f"axis {axis} of {path} {list(shape)} cannot be divided into {parts} parts along {', '.join(names)}: leave "
                "it whole, choose another size, or another mesh"
            )
    while axes and axes[-1] is None:
        axes = axes[:-1]
    return PartitionSpec(*axes)
