"""Writing the variables of modules to a safetensors file, each variable once."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from modulekit.core.places import Parts, Place, places
from modulekit.core.safetensors_file import write
from modulekit.core.safetensors_layout import DTYPES, RECORD, RESERVED


def save(path: str | os.PathLike[str], module: Parts, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the variables of a module to a safetensors file; readers see the old file or the whole new one.

    A variable is stored under its path, such as `layers[0].w`. One that stands in several places is stored once, under
    the first of its paths; the others are kept in the metadata and checked by `plan`. Random streams are stored as what
    they hold, the data of a key and a counter. The values are the variables' own: no getter and no mixed precision
    changes them.

    Args:
      path: of the file; directories around it are made.
      module: a module that has its variables; or parts by name, `{"model": model, "optimizer": optimizer}`.
      metadata: texts to be kept beside the weights.

    Raises:
      ValueError: a part has no variables yet; two variables have one path; a dtype is none of the format; or the metadata
        use our own key.
      TypeError: the metadata are not all texts, or the parts no modules or variables.

    >>> import pathlib, tempfile, modulekit as mk
    >>> layer = mk.Linear(3)
    >>> _ = mk.build(layer, [2, 5])
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     mk.weights.save(pathlib.Path(directory) / "linear.safetensors", layer, {"step": "1000"})
    ...     read = mk.weights.read(pathlib.Path(directory) / "linear.safetensors")
    >>> list(read), read.metadata
    (['b', 'w'], {'step': '1000'})
    """
    wanted = places(module)
    texts = _checked_metadata(metadata or {})
    _check_names(wanted)
    # Order C, since the writer takes the bytes as they lie.
    arrays = {place.path: np.array(place.variable.current(), order="C") for place in wanted}
    for name, array in arrays.items():
        if array.dtype not in DTYPES.values():
            raise ValueError(
                f"{name} is {array.dtype}, which a safetensors file cannot hold: it knows "
                f"{', '.join(str(dtype) for dtype in DTYPES.values())}"
            )
    ties = [list(place.paths) for place in wanted if len(place.paths) > 1]
    texts[RECORD] = json.dumps({"ties": ties}, ensure_ascii=False)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, arrays, texts)


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, text in metadata.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(
                f"metadata {key!r}: {text!r} is not a text under a text, and a safetensors file holds nothing else: "
                "give str(value) or json.dumps(value)"
            )
    if RECORD in metadata:
        raise ValueError(f"metadata {RECORD!r} is where the ties are kept: choose another key")
    return dict(metadata)


def _check_names(wanted: Sequence[Place]) -> None:
    first: dict[str, Place] = {}
    for place in wanted:
        if RESERVED in place.paths:
            raise ValueError(f"a safetensors file keeps the name {RESERVED!r} for itself: rename that part")
        for path in place.paths:
            other = first.setdefault(path, place)
            if other is not place:
                names = f"{other.variable.name!r} and {place.variable.name!r}"
                raise ValueError(f"two variables have the path {path!r}, {names}: rename a part")
