"""Compiled programs kept in a folder, so that many runs of one scenario compile each of them once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

_FOLDER = "jax_compilation_cache_dir"
_ALL = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}


@contextmanager
def kept_programs(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Context in which JAX keeps what it compiles in a folder, as do processes that start."""
    ours: dict[str, Any] = {_FOLDER: str(Path(folder).absolute()), **_ALL}
    before = {name: getattr(jax.config, name) for name in ours}
    variables = {name.upper(): os.environ.get(name.upper()) for name in ours}
    _configure(ours, {name.upper(): str(value) for name, value in ours.items()})
    try:
        yield
    finally:
        _configure(before, variables)


def _configure(settings: dict[str, Any], environment: dict[str, str | None] | dict[str, str]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    for variable, text in environment.items():
        if text is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = text
