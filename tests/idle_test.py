"""Laws of the share of a trace in which the device waited."""

import re
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modulekit as mk
import scenarios
from scenarios.hooks import Profile
from scenarios.hooks.idle import idle_between

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), min_size=1, max_size=12)


@given(SPANS)
def test_idle_is_what_no_span_covers(spans: list[tuple[int, int]]) -> None:
    moments = np.zeros(80, bool)
    for begin, length in spans:
        moments[begin : begin + length] = True
    (busy,) = np.nonzero(moments)
    expected = 1 - len(busy) / (busy[-1] + 1 - busy[0])
    assert idle_between((begin, begin + length) for begin, length in spans) == pytest.approx(expected, abs=1e-12)


def test_moments_without_length_wait_for_nothing() -> None:
    assert idle_between([(3.0, 3.0)]) == 0


def idle_of_a_run(folder: Path, seconds_between: float) -> float | None:
    """Returns the share for a run with a hook that sleeps after each of its programs."""
    x = jnp.ones([256, 512])
    fit = scenarios.Supervised(40, batch_size=256, steps_per_call=4, progress=False)
    profile = Profile(8, 100, folder)
    hooks = [profile, lambda event: time.sleep(seconds_between)]
    fit(mk.nets.MLP([512, 512]), mk.optimizers.SGD(1e-3), mk.losses.squared_error, data=(x, x), hooks=hooks)
    return profile.idle_share()


def test_who_sleeps_between_programs_lets_the_device_wait(tmp_path: Path) -> None:
    awake, asleep = idle_of_a_run(tmp_path / "awake", 0), idle_of_a_run(tmp_path / "asleep", 0.3)
    assert awake is not None and asleep is not None
    assert 0 <= awake < asleep < 1


def test_the_newest_trace_counts(tmp_path: Path) -> None:
    first = idle_of_a_run(tmp_path, 0.3)
    assert idle_of_a_run(tmp_path, 0) != first


def test_a_folder_without_a_trace_is_named(tmp_path: Path) -> None:
    message = f"{tmp_path} holds no trace: there is no *.xplane.pb in it or below"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        Profile(0, 1, tmp_path).idle_share()


def test_a_profile_that_knows_no_place_says_that_it_has_no_trace_yet() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"^Profile has no trace yet: it takes one in a run that it is a hook of$"
    ):
        Profile(0, 1).idle_share()


def test_the_trace_may_lie_in_the_run_s_directory(tmp_path: Path) -> None:
    profile = Profile(0, 100)
    fit = scenarios.Supervised(20, batch_size=4, steps_per_call=4, progress=False, save_dir=tmp_path)
    fit(mk.Linear(1), mk.optimizers.SGD(0.1), mk.losses.squared_error, data=(jnp.ones([4, 1]),) * 2, hooks=[profile])
    assert profile.idle_share() == Profile(0, 1, tmp_path / "profile").idle_share()
