"""Laws of what only looks: evaluations and rehearsals change nothing, and batch sizes change no mean."""

import jax
import jax.numpy as jnp

import modulekit as mk
from modulekit.core.randomness import default_stream
from modulekit.data import Arrays
from scenarios.base.moment import at
from scenarios.testing import snapshot
from scenarios.testing.attempt import Attempt
from scenarios.testing.case import Case
from scenarios.testing.check import Check, Violation, demand
from scenarios.testing.states import difference
from scenarios.testing.subject import Subject

_TOLERANCE = 1e-6  # relative, above 1; rounding in float32
_PARTS = 3  # into how many batches the examples are cut


def _evaluation(subject: Subject) -> str | None:
    interval = max(1, subject.steps // 6)
    case = subject.fresh()
    attempt = Attempt(case, steps_per_call=7, eval_interval=interval)
    result = attempt.start()
    subject.demand_states(attempt, f"with evaluations every {interval} updates, ")
    subject.demand_state(subject.reference.last, attempt.state(), "with an evaluation at the end, ")
    if not result.metrics or attempt.run.eval_examples is None:
        return "evaluations, since there is no evaluation data"
    size = attempt.run.eval_examples.size
    if _draws(attempt):
        return "other batch sizes, since evaluate draws random numbers"
    expected, batch = _means(case, size), -(-size // _PARTS)
    for name, value in _means(case, batch).items():
        if not abs(value - expected[name]) <= _TOLERANCE * max(1.0, abs(expected[name])):
            whole = f"{name} is {expected[name]} in one batch of {size} examples"
            raise Violation(f"{whole}, and {value} in batches of {batch}")
    return None


def _means(case: Case, batch_size: int) -> dict[str, float]:
    """Evaluates trained parts; they must stay as they are."""
    attempt = Attempt(case, steps=0, eval_batch_size=batch_size)
    means = dict(attempt.start().metrics)
    demand(difference(attempt.states[0], attempt.state()), "an evaluation has changed variables: ")
    return means


def _draws(attempt: Attempt) -> bool:
    """Returns whether an evaluation draws random numbers: one for a batch is none for an example."""
    run = attempt.run
    if run.evaluate is None or not isinstance(run.eval_examples, Arrays):
        return False
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), run.eval_examples.take(slice(0, 1)))
    evaluate = run.evaluate

    def evaluated(batch: object) -> object:
        with at(jnp.zeros([], jnp.int32)):
            return evaluate(batch)

    return default_stream().counter in mk.footprint(evaluated, batch).writes


def _dry_run(subject: Subject) -> str | None:
    case, directory = subject.built(), subject.directory()
    scenario = case.scenario(**{**case.settings, "progress": False, "save_dir": directory, "steps_per_call": 1})
    before = Attempt(case).state()
    kept = snapshot.of_scenario(scenario), snapshot.of_parts(case.parts)
    result = scenario.dry_run(data=case.data, eval_data=case.eval_data, **case.parts)
    if result.step != 2:
        raise Violation(f"a dry run has 2 updates, and had {result.step}")
    demand(difference(before, Attempt(case).state()), "after a dry run, ")
    for was, now in zip(kept, (snapshot.of_scenario(scenario), snapshot.of_parts(case.parts)), strict=True):
        demand(snapshot.change(was, now), "after a dry run, ")
    if directory.exists() and any(directory.iterdir()):
        raise Violation(
            f"a dry run has written {sorted(path.name for path in directory.iterdir())} in the run's directory"
        )
    return None


EVALUATION = Check(
    "evaluation",
    "Evaluations change no variable, and their means do not depend on the size of batches.",
    "Return one value per example from evaluate, computed from this example alone; call models with is_training=False, and "
    "assign to no variable in evaluate, measure and pictures.",
    _evaluation,
)
DRY_RUN = Check(
    "dry_run",
    "A dry run takes everything back.",
    "Change nothing but variables: Python attributes, globals and files of your own are not taken back.",
    _dry_run,
)
