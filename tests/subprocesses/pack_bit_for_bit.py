"""Does the same with packs and without, and compares all bits, in a process where XLA rounds each product and each sum.

Prints how many sequences of operations were compared.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_max_isa=SSE4_2"  # it has no fused multiply-add

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from packing_test import Calls, check_both

compared = 0


def same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@settings(deadline=None, max_examples=20, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(Calls)
def check(calls: list[Any]) -> None:
    global compared
    check_both(calls, same_bits)
    compared += 1


check()
print(compared)
