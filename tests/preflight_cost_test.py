"""What preflight says of memory, arithmetic, disk and time."""

import functools
import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preflight_cases import look, regression
from scenario_catalogue import Case, linear_data

import modulekit as mk
import scenarios
from modulekit.core.storage import stored_arrays
from modulekit.data import Arrays
from scenarios.base.duration import Duration, in_time, times_due
from scenarios.base.feeding import specification
from scenarios.base.largest_batch import largest_batch
from scenarios.base.program_cost import program_cost
from scenarios.base.sizes import in_bytes

# Memory and arithmetic.


class Product(mk.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = mk.Variable(jnp.ones([48, 32]), name="w")

    def __call__(self, x: Any) -> Any:
        return x @ self.w


def test_the_operations_of_matrix_products_are_two_for_each_triple() -> None:
    data = (np.random.default_rng(0).normal(size=(64, 48)), np.zeros([64, 32]))
    case = regression(Product(), data=data, batch_size=16).replace(eval_data=None)
    report = look(case)
    forward = 2 * 16 * 48 * 32  # batch x inputs x outputs
    assert report.cost.flops is not None
    elementwise = 8 * (16 * 32 + 48 * 32)  # loss and step
    assert 2 * forward <= report.cost.flops <= 2 * forward + elementwise  # there, and back to the weights
    assert report.flops_per_second == report.cost.flops / report.duration.per_update
    assert report.cost.arguments == 4 * (48 * 32 + 16 * 48 + 16 * 32)
    assert 4 * 48 * 32 <= report.cost.results <= 4 * 48 * 32 + 64
    assert report.memory.occupied == 4 * 64 * (48 + 32)


def test_the_largest_batch_fits_and_the_next_one_does_not() -> None:
    case = regression(mk.nets.MLP([16, 2]), data=linear_data(1000, 3)).replace(eval_data=None)
    everything = look(case, memory_limit=10**9)
    assert everything.largest_batch.size == 1000
    assert everything.largest_batch.limit == "the number of examples"
    limit = everything.memory.occupied + (everything.largest_batch.memory or 0) // 2
    found = look(case, memory_limit=limit).largest_batch
    available = limit - everything.memory.occupied
    assert found.size is not None
    assert found.too_large == found.size + 10
    assert needed(case, found.size) == found.memory
    assert needed(case, found.size) <= available < needed(case, found.too_large)


def needed(case: Case, batch_size: int) -> int:
    update = functools.partial(case.scenario(**case.settings).update, **case.parts)
    return program_cost(update, specification(Arrays(case.data), (batch_size,))).memory


def test_an_update_that_does_not_fit_is_a_warning_and_a_smaller_batch_is_found() -> None:
    case = regression(mk.Linear(2), batch_size=40).replace(eval_data=None)
    whole, one = needed(case, 40), needed(case, 1)
    occupied = 4 * 40 * (4 + 2)
    report = look(case, memory_limit=occupied + (whole + one) // 2)
    assert report.warnings[0].startswith("an update does not fit in memory: update: ")
    size, too_large = report.largest_batch.size, report.largest_batch.too_large
    assert size is not None
    assert too_large is not None
    assert 1 <= size < too_large <= 40
    assert str(look(case, memory_limit=1).largest_batch) == "largest batch that fits: none, not even of one example"


@given(st.integers(1, 20), st.integers(0, 5000), st.integers(1, 100), st.integers(0, 20000), st.integers(0, 500))
def test_of_linear_memory_the_largest_batch_is_found(
    batch_size: int, fixed: int, each: int, available: int, more: int
) -> None:
    memory_of = lambda size: fixed + each * size  # noqa: E731
    examples = batch_size + more
    found = largest_batch(memory_of, batch_size, memory_of(batch_size), available, examples)
    unit = batch_size if memory_of(batch_size) <= available else 1
    most = examples if unit == batch_size else batch_size
    expected = [size for size in range(unit, most + 1, unit) if memory_of(size) <= available]
    assert found.size == max(expected, default=0)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=300), st.integers(0, 5000), st.booleans())
def test_of_any_growing_memory_what_is_said_is_so_and_few_programs_are_compiled(
    steps: list[int], available: int, raises: bool
) -> None:
    memory = list(itertools.accumulate(steps))
    tried: list[int] = []

    def memory_of(size: int) -> int:
        tried.append(size)
        if raises and memory[size - 1] > available:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return memory[size - 1]

    found = largest_batch(memory_of, 1, memory[0], available, len(memory))
    assert len(tried) == len(set(tried)) <= 7
    assert found.size is not None
    assert found.size == 0 or memory[found.size - 1] == found.memory <= available
    assert found.too_large is None or memory[found.too_large - 1] > available
    assert found.too_large is not None or found.size == len(memory)


def test_an_update_that_takes_one_size_alone_has_no_largest_batch() -> None:
    class Fixed(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = mk.Variable(jnp.ones([4, 2]), name="w")

        def __call__(self, x: Any) -> Any:
            return x.reshape([10, 4]) @ self.w

    found = look(regression(Fixed()).replace(eval_data=None)).largest_batch
    assert found.size is None
    assert str(found).startswith(
        "largest batch that fits: not known, since the update cannot be compiled for 40 examples"
    )


# Disk and time.


def test_the_size_of_a_saved_state_is_what_the_run_saves(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(2, 20, 100))
    case = regression(mk.Linear(100), mk.optimizers.Momentum(0.01, 0.9), tuple(data), save_dir=tmp_path / "run")
    case = case.replace(eval_data=None, settings={**case.settings, "ema_decay": 0.9})
    report = look(case, keep=2, keep_best=3)
    assert report.saved.states == 2 + 3 + 1
    case.run()
    folder = tmp_path / "run" / "states" / "20"
    on_disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert 0.8 * report.saved.bytes < on_disk < report.saved.bytes + 40_000
    parts = [v for part in case.parts.values() if isinstance(part, mk.Module) for v in part.variables]
    held = sum(array.nbytes for array in stored_arrays(parts))
    weights = sum(array.nbytes for array in stored_arrays(case.parts["model"].variables))
    assert report.saved.bytes == held + weights + 4  # the averages, and their count


def test_states_that_do_not_fit_on_the_disk_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(path: Any) -> Any:
        asked.append(Path(path))
        return SimpleNamespace(free=200)

    case = regression(mk.Linear(2), save_dir=tmp_path / "not" / "there")
    monkeypatch.setattr(shutil, "disk_usage", usage)
    report = look(case)
    assert asked[-1] == tmp_path
    assert (
        report.warnings
        == [
            "the saved states do not fit on the disk: 5 of 40 bytes are 200 bytes, and 200 bytes are free. "
            "Lower keep or keep_best, or take another save_dir"
        ][: 5 * report.saved.bytes > 200]
    )
    assert report.saved.total == 5 * report.saved.bytes
    tight = look(case, keep=40)
    assert tight.warnings == [
        f"the saved states do not fit on the disk: 42 of {in_bytes(report.saved.bytes)} are "
        f"{in_bytes(42 * report.saved.bytes)}, and 200 bytes are free. Lower keep or keep_best, or take another save_dir"
    ]


def test_evaluations_and_saves_are_counted_as_the_run_does_them(tmp_path: Path) -> None:
    heard: list[Any] = []
    case = regression(mk.Linear(2), save_dir=tmp_path / "run", eval_interval=6, save_interval=5)
    time = look(case).duration
    case.run(hooks=[lambda event: heard.append(type(event))])
    assert time.evaluations == heard.count(scenarios.events.Evaluated)
    assert time.saves == heard.count(scenarios.events.Saved)
    assert time.per_save is not None
    assert time.per_evaluation is not None
    assert time.per_update is not None
    parts = time.compilation, 20 * time.per_update, 4 * time.per_evaluation, 4 * time.per_save
    assert time.total == pytest.approx(sum(parts))


@given(st.integers(1, 500), st.integers(1, 100))
def test_what_is_due_at_multiples_and_at_the_end_is_counted_once(steps: int, interval: int) -> None:
    assert times_due(steps, interval) == len({steps, *range(interval, steps + 1, interval)})


def test_the_steps_of_a_program_that_are_chosen_by_measurement_are_measured() -> None:
    time = look(regression(mk.Linear(2)), steps_per_call=None).duration
    assert time.per_update is not None
    assert 0 < time.per_update < time.compilation
    assert time.measured > 3


def test_times_are_readable() -> None:
    assert (
        str(Duration(1.0, None, 10, 2, None, 0, None, 0)) == "time: not known, since the data was over after 2 updates"
    )
    assert str(Duration(1.0, 0.5, 10, 2, 0.25, 1, 2.0, 2)) == (
        "time: 10.2 s: 1 s to compile, 10 updates of 500 ms, 1 evaluation of 250 ms, 2 saved states of 2 s "
        "(measured on 2 updates)"
    )
    assert in_time(500) == "8.33 min"
