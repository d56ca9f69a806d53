"""A plan for many devices says what the program takes on them, and needs neither them nor the memory of the model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from planned_runs import PLANNED, planned

import modulekit as mk
import scenarios
from modulekit.core import draws
from modulekit.core.randomness import default_stream
from scenarios.base.collectives import Collectives, Traffic
from scenarios.base.program_cost import ProgramCost
from scenarios.base.sizes import PartSize

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}


@pytest.fixture(scope="module")
def measured() -> Any:
    program = [sys.executable, HERE / "subprocesses" / "measure_on_eight_devices.py"]
    done = subprocess.run(program, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_is_what_the_program_takes_on_devices_that_are_there(name: str, measured: Any) -> None:
    assert jax.device_count() == 1
    case = PLANNED[name]()
    drawn, stream = draws.snapshot(), default_stream().counter.numpy()
    plan = planned(case, values=name != "tensor parallel")
    told, real = json.loads(json.dumps(plan.in_json(), allow_nan=False)), measured[name]
    assert told["cost"] == real["cost"]
    assert told["collectives"] == real["collectives"]
    assert (
        told["weight_bytes"] + told["optimizer_bytes"] == plan.weight_bytes + plan.optimizer_bytes == real["variables"]
    )
    assert plan.cost.memory == sum(real["cost"][part] for part in ("arguments", "results", "temporaries"))
    assert draws.snapshot() == drawn
    assert default_stream().counter.numpy() == stream


def test_data_parallel_devices_sum_the_gradients_and_fully_sharded_ones_hold_a_part_each() -> None:
    model, optimizer = mk.nets.MLP([4096, 4096]), mk.optimizers.Adam(1e-3)
    fit = scenarios.Supervised(10, batch_size=512)
    data = jax.ShapeDtypeStruct([10**6, 1024], jnp.float32), jax.ShapeDtypeStruct([10**6], jnp.int32)
    parts = (model, optimizer, mk.losses.softmax_cross_entropy)
    whole = fit.preflight(*parts, data=data, mesh={"data": 256})
    divided = fit.preflight(*parts, data=data, mesh={"data": 256}, placement="fully_sharded")
    more = fit.preflight(*parts, data=data, mesh={"data": 256, "model": 2}, placement="fully_sharded")
    biases, weights = 2 * 4096, 1024 * 4096 + 4096 * 4096
    assert whole.parameters == divided.parameters == biases + weights
    assert (whole.devices, more.devices, whole.examples_per_device) == (256, 512, 2)
    (traffic,) = whole.collectives.kinds
    assert (traffic.kind, traffic.count) == ("all-reduce", 1)
    assert 0 <= traffic.given - 4 * whole.parameters <= 16  # the loss, and whether all is finite
    assert whole.weight_bytes == 4 * whole.parameters
    assert divided.weight_bytes == more.weight_bytes == 4 * (biases + weights) // 256
    assert divided.optimizer_bytes == 2 * divided.weight_bytes + 4
    assert model.paths() == {}  # nothing was made
    assert whole.warnings == divided.warnings == []


def test_a_transformer_of_billions_is_planned_in_little_memory() -> None:
    program = [sys.executable, HERE / "subprocesses" / "plan_billions.py"]
    done = subprocess.run(program, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["parameters"] > 5e9
    assert report["weight_bytes"] + report["optimizer_bytes"] < 1.01 * 12 * report["parameters"] / 128
    assert max(report["peaks"]) < 4e9 < 0.2 * 4 * report["parameters"]  # the bytes of the weights alone


def test_existing_variables_are_planned_by_their_shapes_and_stay_as_they_are() -> None:
    model = mk.nets.MLP([64, 64, 8])
    mk.build(model, [1, 16])
    before = {path: variable.value for path, variable in model.paths().items()}
    case = PLANNED["data parallel"]()
    plan = case.scenario.preflight(
        model, *case.parts[1:], data=case.data, mesh=case.mesh, memory_limit=case.limit, placement=case.placement
    )
    assert plan == planned(PLANNED["data parallel"]())
    assert all(variable.value is before[path] for path, variable in model.paths().items())
    assert model.layers[0].w.version == 0


# What is said.


def example(**changes: Any) -> scenarios.MeshPlan:
    plan = scenarios.MeshPlan(
        scenario="Supervised", mesh={"data": 32}, placement="data_parallel", examples=64, examples_per_device=2,
        parts=(PartSize("model", 5000, 5000, 20000, False), PartSize("optimizer", 5001, 0, 20004, True)),
        are_even=True, data=100, cost=ProgramCost(50_000, 40_000, 10_000, 3e6),
        collectives=Collectives((Traffic("all-reduce", 1, 20000, 39000),)), memory_limit=200_000,
    )  # fmt: skip
    return replace(plan, **changes)


def test_the_report_is_a_text() -> None:
    assert str(example()).splitlines() == [
        "Supervised on 32 devices (data 32), data_parallel: 5,000 trainable numbers",
        "| Part      | Numbers | Trainable | Memory of a device |",
        "|-----------+---------+-----------+--------------------|",
        "| model     | 5,000   | 5,000     | 20 kB              |",
        "| optimizer | 5,001   | 0         | 20 kB of slots     |",
        "batch: 64 examples, 2 on a device, which holds 100 bytes of data",
        "each device, in an update: 3 MFLOP, 100 kB of memory (50 kB in, 40 kB out, 10 kB in between) of 200 kB",
        "| Collective | Count | Given | Sent  |",
        "|------------+-------+-------+-------|",
        "| all-reduce | 1     | 20 kB | 39 kB |",
        "each device sends 39 kB",
        "this is XLA's program for CPUs: other devices fuse and join in other ways",
    ]


def test_what_does_not_fit_or_is_not_known_is_a_warning() -> None:
    assert example().warnings == []
    assert example(memory_limit=None).warnings == []
    assert example(memory_limit=99_999).warnings == [
        "an update does not fit in the memory of a device: it takes 100 kB of 100 kB. Take more devices, a placement that "
        "divides more, or a smaller batch"
    ]
    (uneven,) = example(are_even=False).warnings
    assert uneven.startswith("the batch has no equal parts: 2 examples on each device, and fewer on the last")
    (loops,) = example(collectives=Collectives((), are_all=False)).warnings
    assert loops.startswith("more may be sent: XLA does not know how often a loop with collectives runs")
    assert "warning: the batch" in str(example(are_even=False))


# What is refused.


@pytest.mark.parametrize(
    ("mesh", "kind", "message"),
    [
        (8, TypeError, "mesh=8: expected a number of devices for each axis"),
        ({"data": "8"}, TypeError, "expected a number of devices for each axis"),
        ({"data": 8, "model": 0}, ValueError, "mesh={'data': 8, 'model': 0}: a plan needs a number of devices"),
        ({"data": -1}, ValueError, "They need not be there, so that -1 cannot stand for those that remain"),
        ({}, ValueError, "mesh={}: a plan needs a number of devices for each axis, of at least 1"),
    ],
)
def test_a_mesh_is_a_number_of_devices_for_each_axis(mesh: Any, kind: type[Exception], message: str) -> None:
    case = PLANNED["data parallel"]()
    with pytest.raises(kind, match=re.escape(message)):
        case.scenario.preflight(*case.parts, data=case.data, mesh=mesh)


def check_refused(kind: type[Exception], message: str, *parts: Any, data: Any = None, **options: Any) -> None:
    case = PLANNED["data parallel"]()
    given = [*parts, *case.parts[len(parts) :]]
    with pytest.raises(kind, match=re.escape(message)):
        case.scenario.preflight(*given, data=case.data if data is None else data, mesh={"data": 2}, **options)


def test_other_data_and_placements_are_refused_before_anything_starts() -> None:
    check_refused(ValueError, "there is no preset 'fsdp'. There are data_parallel", placement="fsdp")
    check_refused(
        TypeError, "a plan knows the batches from the data, which is", data=iter([PLANNED["data parallel"]().data])
    )
    check_refused(ValueError, "Supervised cannot be planned in another process, since something", lambda x: x)


class Misfit(mk.Module):
    """A weight of the wrong shape."""

    @mk.once
    def _initialize(self) -> None:
        self.w = mk.Variable(jnp.zeros([3, 8]), name="w")

    def __call__(self, x: Any) -> Any:
        self._initialize()
        return x @ self.w


class Peeking(Misfit):
    """Needs the value of its weight to go on."""

    def __call__(self, x: Any) -> Any:
        self._initialize()
        with jax.ensure_compile_time_eval():
            return x * float(self.w.value.sum())


def test_what_the_other_process_finds_wrong_is_raised_here() -> None:
    check_refused(
        TypeError, "dot_general requires contracting dimensions to have the same shape, got (16,) and (3,)", Misfit()
    )
    check_refused(TypeError, "has no value: it is planned, and only its shape and dtype are known", Peeking())
    check_refused(ValueError, "no variable fits the pattern 'norm/**'", placement={"norm/**": []})
    check_refused(
        ValueError, "is to be divided along 'rows', and the mesh has the axes ['data']", placement={"**/w": ["rows"]}
    )


SCRIPT = """
import jax, modulekit as mk, scenarios

class Net(mk.Module):
    def __init__(self):
        super().__init__()
        self.layer = mk.Linear(4)

    def __call__(self, x):
        return self.layer(x)

def plan():
    fit = scenarios.Supervised(10, batch_size=8)
    data = jax.ShapeDtypeStruct([64, 4], "float32"), jax.ShapeDtypeStruct([64, 4], "float32")
    print(fit.preflight(Net(), mk.optimizers.SGD(0.1), mk.losses.squared_error, data=data, mesh={"data": 4}).parameters)
"""


def run_script(folder: Path, end: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(SCRIPT + end)
    return subprocess.run([sys.executable, "script.py"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def test_a_script_plans_its_own_classes_under_a_guard_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_script(tmp_path, 'if __name__ == "__main__":\n    plan()\n')
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["script.py"]
    done = run_script(tmp_path, "plan()\n")
    assert done.returncode == 1
    assert (
        "Supervised could not be planned in another process: it ended with exit code 1. A script that calls"
        in done.stderr
    )
    assert 'preflight(mesh=...) must do so under `if __name__ == "__main__":`' in done.stderr


def test_a_ctrl_c_ends_both_processes(tmp_path: Path) -> None:
    waits = SCRIPT.replace(
        "return self.layer(x)", "import time; print(__import__('os').getpid(), flush=True); time.sleep(600)"
    )
    (tmp_path / "script.py").write_text(f'{waits}if __name__ == "__main__":\n    plan()\n')
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    script = subprocess.Popen([sys.executable, "script.py"], env=ENVIRONMENT, **options)
    assert script.stdout is not None
    child = int(script.stdout.readline())
    assert child != script.pid
    script.send_signal(signal.SIGINT)
    _, errors = script.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
