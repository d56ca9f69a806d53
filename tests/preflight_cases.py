"""What the tests of preflight share: a small regression, and a look at a case of the catalogue."""

from typing import Any

from scenario_catalogue import Case, linear_data

import modulekit as mk
import scenarios

QUIET = {"batch_size": 10, "progress": False, "steps_per_call": 5}


def look(case: Case, overfit: bool = False, memory_limit: int | None = None, **settings: Any) -> scenarios.Preflight:
    scenario = case.scenario(**{**case.settings, **settings})
    return scenario.preflight(
        data=case.data, eval_data=case.eval_data, overfit=overfit, memory_limit=memory_limit, **case.parts
    )


def regression(model: mk.Module, optimizer: Any = None, data: Any = None, **settings: Any) -> Case:
    optimizer = mk.optimizers.SGD(0.05) if optimizer is None else optimizer
    parts = {"model": model, "optimizer": optimizer, "loss": mk.losses.squared_error}
    examples = linear_data(40, 3) if data is None else data
    return Case(scenarios.Supervised, {"steps": 20, **QUIET, **settings}, parts, examples, linear_data(15, 4))
