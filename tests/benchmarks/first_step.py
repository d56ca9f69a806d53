"""Prints the seconds of the first step of `python -m tests.benchmarks.first_step WORKLOAD CONTENDER`, without imports."""

import sys

import jax

from tests.benchmarks import contenders
from tests.benchmarks.workloads import WORKLOADS


def main() -> None:
    """Measures once, as nothing in this process has trained before."""
    workload, name = sys.argv[1:]
    contender = contenders.load(name)
    jax.devices()  # starting XLA counts as import
    print(contender.first_seconds(WORKLOADS[workload]))


if __name__ == "__main__":
    main()
