"""Laws of keeping: the newest state and the best ones stay, and a state holds what was when it was saved."""

import itertools
import math
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted_runs import start as start_run
from scenario_catalogue import assert_bitwise

import modulekit as mk
from modulekit.checkpoints import CheckpointStore
from modulekit.checkpoints.preservation import Preservation
from modulekit.errors import CheckpointError
from scenarios import events

Scores = list[float | None]
Mode = Literal["min", "max"]
scores_of = st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.5, None, math.nan, math.inf]), min_size=1, max_size=7)
modes = st.sampled_from(["min", "max"])


@contextmanager
def opened(**options: Any) -> Iterator[CheckpointStore]:
    folder = Path(tempfile.mkdtemp())
    store = CheckpointStore(folder, **options)
    try:
        yield store
    finally:
        store.close()
        shutil.rmtree(folder)


def ranking(scores: dict[int, float | None], mode: Mode) -> list[int]:
    """Returns the steps that have a finite score, the best first, of equal ones the older."""
    scored = [step for step, score in scores.items() if score is not None and math.isfinite(score)]
    return sorted(scored, key=lambda step: ((1 if mode == "min" else -1) * scores[step], step))


def expected_steps(scores: Scores, keep: int, keep_best: int, mode: Mode, anchor: int | None) -> list[int]:
    """Returns the steps that stay when states 1, 2, … are saved in turn, by definition."""
    there: dict[int, float | None] = {}
    for step, score in enumerate(scores, 1):
        there[step] = score
        staying = {*list(there)[-keep:], *ranking(there, mode)[:keep_best]}
        staying |= set([saved for saved in there if anchor is not None and saved % anchor == 0][-1:])
        there = {saved: there[saved] for saved in there if saved in staying}
    return sorted(there)


@settings(deadline=None, max_examples=12)
@given(
    scores=scores_of,
    keep=st.integers(1, 2),
    keep_best=st.integers(0, 2),
    mode=modes,
    anchor=st.sampled_from([None, 2, 3]),
)
def test_the_newest_the_best_and_the_anchor_stay_and_no_other(
    scores: Scores, keep: int, keep_best: int, mode: Mode, anchor: int | None
) -> None:
    with opened(keep=keep, keep_best=keep_best, best=mode, anchor_interval=anchor) as store:
        for step, score in enumerate(scores, 1):
            store.save(step, {"w": np.float32([step])}, {}, score)
            assert store.latest() == step
        expected = expected_steps(scores, keep, keep_best, mode, anchor)
        assert store.steps() == expected
        assert store.best() == next(iter(ranking({step: scores[step - 1] for step in expected}, mode)), None)
        again = CheckpointStore(store.directory, keep=keep, keep_best=keep_best, best=mode, anchor_interval=anchor)
        assert (again.steps(), again.best()) == (store.steps(), store.best())
        again.close()


class Entry:
    """What orbax tells a policy of a state."""

    def __init__(self, step: int) -> None:
        self.step = step


@given(
    scores=st.lists(st.none() | st.floats(allow_infinity=False, allow_nan=False), min_size=1, max_size=40),
    keep=st.integers(1, 5),
    keep_best=st.integers(0, 5),
    mode=modes,
)
def test_the_newest_is_never_deleted_and_the_best_of_all_stays(
    scores: Scores, keep: int, keep_best: int, mode: Mode
) -> None:
    policy = Preservation(keep, keep_best, mode, None)
    there: list[int] = []
    for step, score in enumerate(scores):
        there.append(step)
        policy.scores[step] = score
        kept = policy.should_preserve([Entry(saved) for saved in there], context=None)
        there = list(itertools.compress(there, kept))
        assert there[-1] == step
    best = ranking(dict(enumerate(scores)), mode)[:keep_best]
    assert set(best) <= set(there)
    assert len(there) <= keep + keep_best


def test_the_best_state_is_restored() -> None:
    with opened(keep=1, keep_best=1) as store:
        for step, score in enumerate([3.0, 1.0, 2.0, math.nan, None], 1):
            store.save(step, {"w": np.float32([step])}, {"step": step}, score)
        assert store.steps() == [2, 5]
        best = store.best()
        assert best == 2
        arrays, record = store.restore(best)
        assert (arrays["w"].tolist(), record) == ([2.0], {"step": 2})


@pytest.mark.parametrize(("mode", "pick"), [("min", min), ("max", max)])
def test_a_run_keeps_the_state_of_its_best_evaluation(mode: str, pick: Any, tmp_path: Path) -> None:
    result, _ = start_run(
        save_dir=tmp_path, steps=24, save_interval=3, eval_interval=3, keep=1, keep_best=1, best_mode=mode
    )
    losses = dict(zip(*result.column("eval_loss"), strict=True))
    store = CheckpointStore(tmp_path / "states", keep=1, keep_best=1, best=mode)
    best = store.best()
    assert best == pick(losses, key=lambda step: losses[step])
    assert store.steps() == sorted({best, 24})
    arrays, _ = store.restore(best)
    store.close()
    assert_bitwise(arrays, start_run(steps=best)[1])


@contextmanager
def slow_writing(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Makes background writing wait for an event."""
    go, write = threading.Event(), CheckpointStore._write

    def held(self: CheckpointStore, *state: Any) -> None:
        assert go.wait(30)
        write(self, *state)

    monkeypatch.setattr(CheckpointStore, "_write", held)
    yield go
    go.set()


def test_what_is_changed_or_donated_while_a_state_is_written_does_not_change_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with opened() as store, slow_writing(monkeypatch) as go:
        array, w, record = np.zeros(3), mk.Variable(jnp.ones(3), name="w"), {"list": [1]}
        step = mk.jit(lambda: w.assign_add(1.0))
        step()
        store.save(1, {"array": array, "w": w.value, "donated": jnp.arange(4.0)}, record, in_background=True)
        array[:] = 7
        record["list"].append(2)
        step()
        step()
        assert store.written() == []
        go.set()
        arrays, stored = store.restore(1)
        assert store.written() == [1]
    assert arrays["array"].tolist() == [0.0] * 3
    assert arrays["w"].tolist() == [2.0] * 3
    assert stored == {"list": [1]}


@pytest.mark.parametrize("method", ["wait", "steps", "latest", "best", "close", "save"])
def test_an_error_in_the_background_is_raised_by_the_next_method_once(method: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "states")
    break_directory(store.directory)
    store.save(1, {"w": np.ones(2)}, {}, in_background=True)
    arguments = (2, {"w": np.ones(2)}, {}) if method == "save" else ()
    with pytest.raises((OSError, ValueError)):
        getattr(store, method)(*arguments)
    store.wait()
    if method != "close":
        store.close()


def break_directory(directory: Path) -> None:
    """Puts a file where a directory was."""
    shutil.rmtree(directory)
    directory.write_text("")


def test_an_error_while_a_state_is_written_reaches_the_run(tmp_path: Path) -> None:
    def breaking(event: events.Event) -> None:
        if isinstance(event, events.Progressed) and event.step == 6:
            break_directory(tmp_path / "states")

    with pytest.raises((OSError, ValueError)):
        start_run([breaking], save_dir=tmp_path, steps=20, save_interval=3, steps_per_call=1)


def test_a_state_is_not_written_twice_in_the_background() -> None:
    with opened() as store:
        store.save(1, {"w": np.zeros(2)}, {}, in_background=True)
        with pytest.raises(CheckpointError, match=r"already holds a state of step 1, which is not overwritten$"):
            store.save(1, {"w": np.ones(2)}, {}, in_background=True)
        assert store.restore(1)[0]["w"].tolist() == [0.0, 0.0]
