"""What the programs of laws share: each is run by a test in a process of its own, and checks all laws or those named."""

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

LAWS: list[Callable[[], None]] = []


def law(check: Callable[[], None]) -> Callable[[], None]:
    """Adds a law."""
    LAWS.append(check)
    return check


def near(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=tolerance, atol=tolerance)


def refused(kind: type[Exception], text: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except kind as error:
        assert text in str(error), error
        return
    raise AssertionError(f"no {kind.__name__}")


def check_laws(devices: int) -> None:
    """Checks the laws, and prints one JSON object of those that fail, with the reason."""
    assert jax.device_count() == devices
    chosen = [check for check in LAWS if not sys.argv[1:] or check.__name__ in sys.argv[1:]]
    failed = {}
    for check in chosen:
        try:
            check()
        except Exception:
            failed[check.__name__] = traceback.format_exc()
    print(json.dumps({"laws": [check.__name__ for check in LAWS], "failed": failed}))
