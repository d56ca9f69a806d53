"""The plan of a file of weights: which of its arrays goes into which variable of a module."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modulekit.core.patterns import check_some, matches, parts_of
from modulekit.core.places import Parts, Place, places
from modulekit.core.plan import Line, Plan, count_of_nonfinite, line_of, unexpected
from modulekit.weights.reading import SavedArray, WeightsFile
from modulekit.weights.renaming import Renaming

_log = logging.getLogger("modulekit")
Source = str | os.PathLike[str] | Mapping[str, Any]


class _Name(NamedTuple):
    """One name of a saved array; a tied one has several."""

    name: str
    array: SavedArray
    target: tuple[str, ...]  # the parts of the path that it is to have in the module
    is_renamed: bool

    def target_text(self) -> str:
        return ".".join(self.target) if self.is_renamed else self.name


def plan(
    source: Source,
    module: Parts,
    *,
    rename: Mapping[str, str] | None = None,
    only: str | Sequence[str] | None = None,
) -> Plan:
    """Returns which saved array goes into which variable of a module. Nothing changes.

    A name is compared with the paths of the variables part by part: `layers.0.w` and `layers/0/w` are `layers[0].w`.
    What is tied in the file must be one variable in the module. The arrays of a tied variable may be given under each of
    its paths, if they are equal. Values that are not finite are noted in the table, and taken.

    Args:
      source: the path of a safetensors file, what `read` has made of one, or arrays by name.
      module: the module, built; or parts by name: `{"model": model, "optimizer": optimizer}`.
      rename: patterns of the file's names, with what they are in the module: `{"encoder/layer/*/weight": "layers/*/w"}`.
        `*` stands for anything within a part, `**` for any number of parts, and what they stand for goes over in order. A
        pattern that stops early renames the beginning: `{"model": ""}` takes it away. The first that fits counts.
      only: patterns of paths in the module, as in `Module.freeze`: all other variables are left as they are.

    Returns:
      The plan, to be printed and applied.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: it is no safetensors file, or it is damaged.
      ValueError: the module has no variables yet; a pattern fits nothing; or two arrays would go by one name.
      TypeError: what is given as arrays are none.

    >>> import modulekit as mk
    >>> model = mk.nets.MLP([4, 3])
    >>> _ = mk.build(model, [2, 5])
    >>> arrays = {"net.0.weight": np.ones([5, 4], np.float32), "net.0.bias": np.ones([4], np.float32)}
    >>> rename = {"net/*/weight": "layers/*/w", "net/*/bias": "layers/*/b"}
    >>> plan = mk.weights.plan(arrays, model, rename=rename, only="layers/0")
    >>> print(plan)
    | Variable    | Checkpoint   | Spec     | Result  |
    |-------------+--------------+----------+---------|
    | layers[0].b | net.0.bias   | f32[4]   | matched |
    | layers[0].w | net.0.weight | f32[5,4] | matched |
    2 matched, 0 wrong, 0 missing, 0 unexpected
    >>> plan.apply()
    """
    everywhere = places(module)
    patterns = [only] if isinstance(only, str) else only
    wanted = _chosen(everywhere, patterns, module)
    names = _names(_opened(source), rename or {})
    found = _found(names, everywhere)
    lines = list(_lines(wanted, found))
    taken = {id(name.array) for paths in found.values() for names_of_one in paths.values() for name in names_of_one}
    left = {
        id(name.array): name.array
        for name in names
        if id(name.array) not in taken and (patterns is None or _fits(name.target_text(), patterns))
    }
    hint = "" if taken else _hint(names, everywhere)
    return Plan([*lines, *map(unexpected, left.values())], hint)


def load(
    path: Source,
    module: Parts,
    *,
    rename: Mapping[str, str] | None = None,
    only: str | Sequence[str] | None = None,
    allow_missing: bool = False,
    convert: bool = False,
) -> Plan:
    """Gives the variables of a module their values from a file, all of them or, where anything is in the way, none.

    What the file has beyond that is left aside, and logged as a warning to the logger `modulekit`.

    Args:
      path: of a safetensors file, or whatever `plan` takes.
      module: as for `plan`.
      rename: as for `plan`.
      only: as for `plan`.
      allow_missing: whether variables for which the file has nothing may keep their values.
      convert: whether floating values of another width may be rounded to the variable's.

    Returns:
      The plan that was applied.

    Raises:
      CheckpointError: something does not fit, or the file is damaged; nothing has changed.
      ValueError: as for `plan`.

    >>> import pathlib, tempfile, modulekit as mk
    >>> first, second = mk.Linear(3), mk.Linear(3)
    >>> _ = mk.build(lambda x: (first(x), second(x)), [2, 5])
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     mk.weights.save(pathlib.Path(directory) / "linear.safetensors", first)
    ...     mk.weights.load(pathlib.Path(directory) / "linear.safetensors", second)
    Plan(2 matched, 0 wrong, 0 missing, 0 unexpected)
    >>> bool((first.w.value == second.w.value).all())
    True
    """
    planned = plan(path, module, rename=rename, only=only)
    planned.apply(allow_missing=allow_missing, convert=convert)
    if planned.unexpected:
        _log.warning("arrays that no variable takes were left aside:\n%s", planned)
    return planned


def _opened(source: Source) -> Mapping[str, Any]:
    if isinstance(source, str | os.PathLike):
        return WeightsFile(source)
    if not isinstance(source, Mapping):
        raise TypeError(f"{type(source).__name__} is neither a path nor arrays by name: {source!r}")
    return source if isinstance(source, WeightsFile) else {name: _given(name, array) for name, array in source.items()}


def _given(name: str, array: Any) -> SavedArray:
    """Returns an array of a mapping as a saved one, whose values are copied: the caller's array may change."""
    if isinstance(array, SavedArray):
        return array
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise TypeError(f"{name!r} holds random keys: give jax.random.key_data(key), which is what variables hold")
    values = np.asarray(array)
    if values.dtype.kind in "OSUMm":
        raise TypeError(f"{name!r} is no array of numbers, but {type(array).__name__}: give arrays by name, not nested")
    return SavedArray(name, values.shape, values.dtype, values.copy)


def _chosen(everywhere: Sequence[Place], patterns: Sequence[str] | None, module: Parts) -> list[Place]:
    """Returns the places whose paths fit one of the patterns; all where there are none."""
    if patterns is None:
        return list(everywhere)
    for pattern in patterns:
        fitting = [path for place in everywhere for path in place.paths if matches(pattern, path)]
        check_some(pattern, fitting, [place.path for place in everywhere], repr(module))
    return [place for place in everywhere if any(_fits(path, patterns) for path in place.paths)]


def _fits(path: str, patterns: Iterable[str]) -> bool:
    return any(matches(pattern, path) for pattern in patterns)


def _names(arrays: Mapping[str, SavedArray], rename: Mapping[str, str]) -> list[_Name]:
    """Returns all names, tied ones included, with what they are to be called.

    Raises:
      ValueError: two arrays would go by one name, or a pattern fits none.
    """
    ties = {tie[0]: tie for tie in arrays.ties} if isinstance(arrays, WeightsFile) else {}
    renaming, names = Renaming(rename), []
    for first, array in arrays.items():
        for name in ties.get(first, (first,)):
            target = renaming.apply(name)
            names.append(_Name(name, array, tuple(parts_of(name)) if target is None else target, target is not None))
    renaming.check_used(name.name for name in names)
    takers: dict[tuple[str, ...], _Name] = {}
    for one in names:
        other = takers.setdefault(one.target, one)
        if other.array is not one.array and (one.is_renamed or other.is_renamed):
            raise ValueError(f"rename gives {other.name!r} and {one.name!r} one name, {'.'.join(one.target)!r}")
    return names


def _found(names: Sequence[_Name], everywhere: Sequence[Place]) -> dict[int, dict[str, list[_Name]]]:
    """Returns, by the variable's id and by the path that they name, the names that lead to each variable.

    Raises:
      ValueError: a name could mean several variables, or two arrays mean one path.
    """
    exact = {path: place for place in everywhere for path in place.paths}
    by_parts: dict[tuple[str, ...], dict[str, Place]] = {}
    for path, place in exact.items():
        by_parts.setdefault(tuple(parts_of(path)), {})[path] = place
    found: dict[int, dict[str, list[_Name]]] = {}
    for name in names:
        is_exact = not name.is_renamed and name.name in exact
        paths = {name.name: exact[name.name]} if is_exact else by_parts.get(name.target, {})
        if len({id(place.variable) for place in paths.values()}) > 1:
            raise ValueError(f"{name.name!r} may mean {' or '.join(paths)}: give one of these names exactly")
        for path, place in list(paths.items())[:1]:
            one = found.setdefault(id(place.variable), {}).setdefault(path, [])
            if any(other.array is not name.array for other in one):
                raise ValueError(f"{one[0].name!r} and {name.name!r} both mean {path}: give one of them")
            one.append(name)
    return found


def _lines(wanted: Sequence[Place], found: Mapping[int, Mapping[str, Sequence[_Name]]]) -> Iterable[Line]:
    takers: dict[int, str] = {}
    for place in wanted:
        names = [name for at_path in found.get(id(place.variable), {}).values() for name in at_path]
        arrays = list({id(name.array): name.array for name in names}.values())
        array = arrays[0] if arrays else None
        problem = _differing(arrays)
        if array is not None:
            other = takers.setdefault(id(array), place.path)
            if other != place.path:
                problem = f"tie conflict: one with {other} in the checkpoint, and not here"
        line = line_of(place.path, place.variable, array, problem)
        count = count_of_nonfinite(array.numpy()) if array is not None and line.result == "matched" else 0
        yield line._replace(note=f"{count} values not finite" if count else "")


def _differing(arrays: Sequence[SavedArray]) -> str:
    """Returns what is wrong with several arrays for one variable; nothing if they have the same bits."""
    bits = {(array.shape, str(array.dtype), array.numpy().tobytes()) for array in arrays} if len(arrays) > 1 else set()
    if len(bits) > 1:
        return f"tie conflict: one variable here, and {' and '.join(a.path for a in arrays)} in the checkpoint"
    return ""


def _hint(names: Sequence[_Name], everywhere: Sequence[Place]) -> str:
    if not names:
        return "The checkpoint is empty."
    return (
        f"Nothing fits: the checkpoint has names such as {names[0].name!r}, the module paths such as "
        f"{everywhere[0].path!r}. Give `rename`, or the module that was saved."
    )
