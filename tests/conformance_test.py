"""The conformance kit: built-in scenarios obey all laws, and each of many broken plug-ins breaks the one that it should."""

import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
from broken_scenarios import BROKEN, STEPS, HashesText, Memory, Sound
from scenario_catalogue import FURTHER, ROW, ScenarioRow, exactly, name_of

import modulekit as mk
import scenarios
from modulekit.core import draws
from modulekit.core.randomness import default_stream
from scenarios.testing import CHECKS, Case, ConformanceError, check_scenario
from scenarios.testing.check import Check
from scenarios.testing.report import ConformanceReport, Finding

NAMES = {
    "settings", "purity", "dry_run", "step_count", "chunk_invariance", "evaluation", "non_finite", "resume", "signals",
    "determinism", "atomicity",
}  # fmt: skip


def surroundings() -> list[Any]:
    """Returns what the kit must leave as it was."""
    stream = default_stream()
    state = [v.numpy().tolist() for v in (stream.key, stream.counter)]
    return [
        *state,
        draws.root_seed(),
        draws.snapshot(),
        np.random.get_state()[1].tolist(),
        jax.config.jax_compilation_cache_dir,
    ]


def failures(kind: type[scenarios.Scenario]) -> ConformanceReport:
    with pytest.raises(ConformanceError) as caught:
        check_scenario(kind, elsewhere=kind is HashesText)  # the others are found out without
    return caught.value.report


# The others of the catalogue obey the engine's laws, test by test.
STEERED = "ensemble_that_stops_early"  # by its evaluations, so that these cannot be left out, or come at other times
OTHERS = [row for row in FURTHER if row.name != STEERED]
TRIED = [ROW["classification_with_dropout"], ROW["tied_autoencoder"], ROW["all_methods"], *OTHERS]


@pytest.mark.parametrize("row", TRIED, ids=name_of)
def test_every_scenario_of_the_catalogue_obeys_all_laws(row: ScenarioRow) -> None:
    assert check_scenario(row.make, elsewhere=False).passed


def test_every_scenario_that_there_is_has_its_row() -> None:
    found = [value for value in vars(scenarios).values() if isinstance(value, type)]
    built_in = {kind for kind in found if issubclass(kind, scenarios.Scenario) and kind is not scenarios.Scenario}
    assert built_in == {row.fresh().scenario for row in TRIED} & built_in


def test_a_sound_plug_in_passes_everything_and_all_around_stays_as_it_was() -> None:
    mk.seed(5)
    mk.next_key()
    before = surroundings()
    report = check_scenario(Sound)
    assert surroundings() == before
    assert {finding.check.name for finding in report.findings} == NAMES
    assert [finding.message for finding in report.findings] == [""] * len(NAMES)  # nothing was left out
    assert str(report).startswith("Sound obeys 11 of 11 laws of scenarios\npassed settings: ")


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_plug_in_breaks_its_law_and_only_those_that_hang_on_it(kind: type[Sound]) -> None:
    report = failures(kind)
    right, *others = BROKEN[kind]
    assert right in report.failed
    assert set(report.failed) <= {right, *others}


def test_ten_laws_and_more_are_broken_by_somebody() -> None:
    assert {check.name for check in CHECKS} == NAMES == {laws[0] for laws in BROKEN.values()}


class Failing(Sound):
    """Fails from the start."""

    def update(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        raise LookupError("the update is wrong")


def test_a_case_that_does_not_run_breaks_no_law_but_raises_its_own_error() -> None:
    with pytest.raises(LookupError, match=exactly("the update is wrong")):
        check_scenario(Failing)


def test_the_error_says_what_was_seen_and_what_to_do() -> None:
    law = Check("patience", "Nothing happens.", "Wait.", lambda subject: None)
    other = Check("calm", "Nothing is heard.", "Be quiet.", lambda subject: None)
    report = ConformanceReport("Fit", [Finding(law, False, "w has changed"), Finding(other, True, "at night")])
    assert report.failed == ["patience"]
    assert str(ConformanceError(report)) == (
        "Fit breaks 1 of 2 laws of scenarios:\n- patience: Nothing happens. But w has changed. What to do: Wait."
    )
    assert str(report).splitlines() == [
        "Fit obeys 1 of 2 laws of scenarios",
        "FAILED patience: Nothing happens. But w has changed. What to do: Wait.",
        "passed calm: Nothing is heard. (not tried: at night)",
    ]


def test_what_cannot_be_pickled_is_tried_in_this_process_alone() -> None:
    class Local(Sound):
        """Is defined where no other process finds it."""

    report = check_scenario(Local)
    notes = {finding.check.name: finding.message for finding in report.findings if finding.message}
    assert notes.keys() == {"determinism", "atomicity"}
    assert all(note.startswith("another process, since the case cannot be pickled: ") for note in notes.values())


class Bare(scenarios.Scenario):
    """Has nothing but an update, and no example."""

    def update(self, batch: Any, *, memory: Memory) -> Mapping[str, Any]:
        memory.w.assign_add(batch.sum(axis=0))
        return {"sum": batch.sum()}


def case_of_integers(steps: int = 8) -> Case:
    return Case(Bare, {"steps": steps, "batch_size": 4}, {"memory": Memory()}, np.arange(60).reshape(12, 5))


def test_what_does_not_apply_is_said() -> None:
    notes = {
        finding.check.name: finding.message for finding in check_scenario(case_of_integers, elsewhere=False).findings
    }
    assert notes["determinism"] == notes["atomicity"] == "another process, since none is to be started"
    assert notes["non_finite"] == "a bad example, since the data has no floating-point numbers"
    assert notes["evaluation"] == "evaluations, since there is no evaluation data"


def test_a_class_without_an_example_is_told_what_to_give() -> None:
    message = (
        "Bare has no class method example(), which returns a small case to try it on: write one, or give a function, as in "
        "check_scenario(lambda: Case(Bare, {'steps': 20}, parts, data))"
    )
    with pytest.raises(TypeError, match=exactly(message)):
        check_scenario(Bare)


def test_what_is_no_case_is_named() -> None:
    with pytest.raises(TypeError, match=r"^expected a scenarios\.testing\.Case, and got 3$"):
        check_scenario(lambda: 3)  # type: ignore[arg-type, return-value]


def test_a_case_with_too_few_steps_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^the case of Bare has steps=7: give it at least 8, so that it can be interrupted$"
    ):
        check_scenario(lambda: case_of_integers(7))


def test_another_thread_is_refused() -> None:
    caught: list[BaseException] = []

    def check() -> None:
        try:
            check_scenario(Sound)
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert [str(error) for error in caught] == [
        "check_scenario sends its process signals, which only the main thread hears: call it there"
    ]


def test_the_process_that_imports_a_script_without_a_guard_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENARIOS_CHECK_IN_PROGRESS", "1")
    with pytest.raises(RuntimeError, match=exactly('call check_scenario under `if __name__ == "__main__":`')):
        check_scenario(Sound)


def test_steps_of_the_example_are_enough_for_each_law() -> None:
    assert Sound.example().settings["steps"] == STEPS >= 8
