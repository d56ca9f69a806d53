"""What the tests of diagnostics look at: the lines of a test file, and the notes behind an error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modulekit.core.provenance import Origin


def origin_of(file: str, marker: str) -> Origin:
    """Returns the only line of a file that ends with the comment `# marker`."""
    lines = Path(file).read_text().split("\n")
    (number,) = (number for number, line in enumerate(lines, 1) if line.endswith(f"  # {marker}"))
    return Origin(file, number)


def chain_of(run: Callable[[], Any]) -> list[str]:
    """Returns the chain of modules behind the error of a call."""
    with pytest.raises(Exception) as raised:
        run()
    return notes_of(raised.value)


def notes_of(error: BaseException) -> list[str]:
    """Returns the notes of ours that an error has; JAX has others."""
    return [note for note in getattr(error, "__notes__", []) if note.startswith("  in ")]
