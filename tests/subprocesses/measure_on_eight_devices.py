"""Prints, as one JSON object, what the programs of `planned_runs` take on eight devices that are there."""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from dataclasses import asdict, replace
from typing import Any

import jax
import numpy as np
from planned_runs import PLANNED

from scenarios.base.collectives import collectives_in
from scenarios.base.parts import named_parts
from scenarios.base.program_cost import cost_of
from scenarios.base.run import Run


def measured(name: str) -> dict[str, Any]:
    case = PLANNED[name]()
    settings = replace(case.scenario.settings, mesh=case.mesh, placement=case.placement)
    parts = named_parts(case.scenario.update, name, case.parts, {})
    with Run(case.scenario, settings, parts, case.data).prepared() as prepared:
        stepper, chunk = prepared.stepper, prepared.feed.take(0, 1, 1)
        done, metrics = stepper.run(0, chunk)  # the program does run
        assert done == 1 and np.isfinite(metrics["loss"]).all()
        assert len(jax.tree.leaves(chunk.source)[0].sharding.device_set) == 8
        compiled = stepper.lowered(chunk.source, chunk.rows[0]).compile()
        shards = [v.current().addressable_shards for v in prepared.variables.values()]
    return {
        "variables": sum(found[0].data.nbytes for found in shards),
        "cost": asdict(cost_of(compiled)),
        "collectives": asdict(collectives_in(compiled.as_text())),
    }


print(json.dumps({name: measured(name) for name in PLANNED}))
