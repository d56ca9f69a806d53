"""Ctrl-C and threads: a compiled step happens whole or not at all, and none is lost."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp

import modulekit as mk

ROOT = Path(__file__).parents[1]


def test_a_step_that_is_interrupted_is_kept_whole_or_not_at_all() -> None:
    script = ROOT / "tests" / "subprocesses" / "interrupt_steps.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(r"60 interrupts, (\d+) different steps\n", done.stdout)
    assert found is not None and int(found[1]) > 10


def test_threads_that_step_one_model_lose_no_step() -> None:
    count = mk.Variable(jnp.zeros([100]), name="count")
    other = mk.Variable(jnp.zeros([]), name="other")

    @mk.jit
    def step() -> None:
        count.assign_add(1.0)

    @mk.jit
    def both() -> None:
        count.assign_add(1.0)
        other.assign_add(1.0)

    step(), both()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for index in range(200):
                (both if index % 2 else step)()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert float(count.value.min()) == float(count.value.max()) == 802.0
    assert float(other) == 401.0
