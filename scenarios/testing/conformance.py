"""The conformance kit: whether a scenario keeps what every scenario promises."""

import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import perf_counter

import jax

from modulekit.core import draws
from modulekit.core.randomness import default_stream
from scenarios.base.compilation import kept_programs
from scenarios.base.scenario import Scenario
from scenarios.testing.atomicity import ATOMICITY
from scenarios.testing.case import Case
from scenarios.testing.check import Check, Violation
from scenarios.testing.constructor import SETTINGS
from scenarios.testing.counting import STEP_COUNT
from scenarios.testing.elsewhere import refuse_inside
from scenarios.testing.interruption import RESUME, SIGNALS
from scenarios.testing.looking import DRY_RUN, EVALUATION
from scenarios.testing.poison import NON_FINITE
from scenarios.testing.purity import PURITY
from scenarios.testing.repetition import CHUNK_INVARIANCE, DETERMINISM
from scenarios.testing.report import ConformanceError, ConformanceReport, Finding
from scenarios.testing.subject import SEED, Subject

CHECKS: tuple[Check, ...] = (
    SETTINGS, PURITY, DRY_RUN, STEP_COUNT, CHUNK_INVARIANCE, EVALUATION, NON_FINITE, RESUME, SIGNALS, DETERMINISM, ATOMICITY,
)  # fmt: skip


def check_scenario(scenario: type[Scenario] | Callable[[], Case], elsewhere: bool = True) -> ConformanceReport:
    """Tries whether a scenario obeys the laws of scenarios, in a few small runs of it.

    Each check runs fresh cases, and compares them bit by bit with one run that nothing interrupts. Part of it happens in
    another process, if the case can be pickled: a script must call this under `if __name__ == "__main__":`.

    Args:
      scenario: a function that returns a fresh `Case` each time; or a scenario's class with such a function as class method
        `example()`. The smaller the case, the sooner the answer.
      elsewhere: whether part of it may run in another process.

    Returns:
      The report, in which all checks have passed.

    Raises:
      ConformanceError: some have not; the message says which, what was seen and what to do; `error.report` is the report.
      TypeError: there is no case.
      ValueError: the case has fewer than 8 steps.
      RuntimeError: it was called outside of the main thread, which alone can be sent signals.

    >>> import numpy as np, modulekit as mk, scenarios
    >>> class Fit(scenarios.Scenario):
    ...     def update(self, batch, *, model, optimizer):
    ...         x, y = batch
    ...         return {"loss": optimizer.minimize(lambda: ((model(x) - y) ** 2).mean(), model)}
    ...
    ...     @classmethod
    ...     def example(cls):
    ...         x = np.random.default_rng(0).normal(size=[32, 3]).astype(np.float32)
    ...         parts = {"model": mk.Linear(2), "optimizer": mk.optimizers.Adam(0.1)}
    ...         return Case(cls, {"steps": 10, "batch_size": 8}, parts, (x, x[:, :2]))
    >>> check_scenario(Fit).passed
    True
    """
    refuse_inside()
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("check_scenario sends its process signals, which only the main thread hears: call it there")
    stream = default_stream()
    kept = (stream.key.current(), stream.counter.current())
    try:
        with draws.seeded(SEED), tempfile.TemporaryDirectory() as folder, _kept_programs(Path(folder) / "programs"):
            report = _report(Subject(_maker(scenario), Path(folder), elsewhere))
    finally:
        stream.key.assign(kept[0])
        stream.counter.assign(kept[1])
    if not report.passed:
        raise ConformanceError(report)
    return report


def _kept_programs(folder: Path) -> AbstractContextManager[None]:
    """Returns a context in which each program is compiled once; a folder for them that is set already stays."""
    is_set = jax.config.jax_compilation_cache_dir is not None  # type: ignore[attr-defined]
    return nullcontext() if is_set else kept_programs(folder)


def _maker(scenario: type[Scenario] | Callable[[], Case]) -> Callable[[], Case]:
    if not isinstance(scenario, type):
        return scenario
    example: Callable[[], Case] | None = getattr(scenario, "example", None)
    if example is None:
        raise TypeError(
            f"{scenario.__name__} has no class method example(), which returns a small case to try it on: write one, or "
            f"give a function, as in check_scenario(lambda: Case({scenario.__name__}, {{'steps': 20}}, parts, data))"
        )
    return example


def _report(subject: Subject) -> ConformanceReport:
    killed = subject.killed  # runs beside the checks
    try:
        subject.run_reference()  # what this raises is no law that is broken, but a case that does not run
        return ConformanceReport(subject.name, [_finding(check, subject) for check in CHECKS])
    finally:
        killed.stop()


def _finding(check: Check, subject: Subject) -> Finding:
    began = perf_counter()
    try:
        message, passed = check.attempt(subject) or "", True
    except Violation as violation:
        message, passed = str(violation), False
    except (Exception, SystemExit) as error:
        message, passed = f"{type(error).__name__} was raised: {error}", False
    return Finding(check, passed, message, perf_counter() - began)
