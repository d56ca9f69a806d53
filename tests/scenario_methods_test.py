"""What a scenario may define beside `update`: which examples, a state of its own, measurements, pictures, alarms."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from scenario_catalogue import ROW, STEPS, Looking, log_lines, uninterrupted

import modulekit as mk
import scenarios
from modulekit.data import batch_indices
from scenarios.base.batches import chosen
from scenarios.base.pictures import grid

LOOKING = ROW["all_methods"]
QUIET: dict[str, Any] = {"progress": False}


def test_an_update_knows_its_step() -> None:
    result, _ = LOOKING.start(log_interval=1)
    assert [row["before"] for row in result.history] == list(range(STEPS))
    assert [row["updates"] for row in result.history] == list(range(1, STEPS + 1))


def test_the_step_is_not_known_outside_of_a_run() -> None:
    with pytest.raises(RuntimeError, match=r"^the step of a run is known in `update`, .* while a run calls them"):
        _ = Looking(3).step


def test_the_state_of_a_scenario_belongs_to_one_run(tmp_path: Path) -> None:
    whole, _ = uninterrupted(LOOKING)
    assert int(whole.state["counters"].updates) == STEPS
    LOOKING.start(save_dir=tmp_path, steps=17)
    resumed, _ = LOOKING.start(save_dir=tmp_path)
    assert int(resumed.state["counters"].updates) == STEPS
    assert resumed.metrics == whole.metrics  # the random numbers of an evaluation are those of its step
    case = LOOKING.fresh()
    scenario = case.scenario(**{**case.settings, "steps": 2})
    runs = [scenario(data=case.data, **case.parts) for _ in range(2)]
    assert [int(run.state["counters"].updates) for run in runs] == [2, 2]


def test_the_state_of_a_scenario_is_no_part_of_a_call() -> None:
    case = LOOKING.fresh()
    form = r"Looking\(\.\.\.\)\(model, optimizer, data=\.\.\.\)"
    with pytest.raises(TypeError, match=rf"^{form} has no part 'counters'$"):
        case.replace(parts={**case.parts, "counters": mk.Linear(1)}).run()


class Choosy(scenarios.Scenario):
    """Methods that name the parts which they need, and no others; each notes what it got."""

    def __init__(self, steps: int, **settings: Any) -> None:
        super().__init__(steps, **settings)
        self.got: dict[str, Any] = {}

    def state(self) -> dict[str, mk.Module]:
        return {"counters": mk.Linear(1)}

    def update(self, batch: Any, *, weight: Any, optimizer: Any, unit: float = 1.0, counters: Any) -> dict[str, Any]:
        return {"loss": optimizer.minimize(lambda: weight(batch).sum(), weight)}

    def evaluate(self, batch: Any, *, weight: Any) -> dict[str, Any]:
        self.got["evaluate"] = weight
        return {"value": batch[:, 0]}

    def measure(self, eval_data: Any) -> dict[str, Any]:
        self.got["measure"] = eval_data.size
        return {}

    def pictures(self, eval_data: Any, *, counters: Any, unit: float = 2.0) -> dict[str, Any]:
        self.got["pictures"] = counters, unit
        return {}

    def check(self, data: Any, eval_data: Any, *, optimizer: Any) -> None:
        self.got["check"] = optimizer

    def prepare(self, batch: Any, form: Any, **parts: Any) -> None:
        self.got["prepare"] = list(parts)

    @contextmanager
    def around(self, batch: Any, weight: Any) -> Iterator[None]:
        self.got["around"] = weight
        yield


def test_methods_get_the_parts_that_they_name_and_all_if_they_take_any(tmp_path: Path) -> None:
    x, weight, optimizer = np.ones([8, 2], np.float32), mk.Linear(1), mk.optimizers.SGD(0.1)
    choosy = Choosy(4, batch_size=4, save_dir=tmp_path, **QUIET)
    result = choosy(weight, optimizer, data=x, eval_data=x)
    assert choosy.got == {
        "evaluate": weight,
        "measure": 8,
        "pictures": (result.state["counters"], 2.0),
        "check": optimizer,
        "prepare": ["weight", "optimizer", "counters"],
        "around": weight,
    }
    other = Choosy(4, batch_size=4, save_dir=tmp_path / "other", **QUIET)
    other(weight, optimizer, unit=3.0, data=x, eval_data=x)
    assert other.got["pictures"][1] == 3.0


@pytest.mark.parametrize("name", ["evaluate", "measure", "pictures", "check", "prepare", "around"])
def test_a_method_that_takes_what_is_no_part_is_refused_before_anything_happens(name: str, tmp_path: Path) -> None:
    def method(self: Any, first: Any, second: Any = None, *, weight: Any, other: Any, more: Any) -> Any: ...

    kind = type("Misled", (Choosy,), {name: method})
    message = f"Misled.{name} takes other, more, and the parts of the call are weight, optimizer, counters"
    x, weight = np.ones([8, 2], np.float32), mk.Linear(1)
    with pytest.raises(TypeError, match=f"^{message}$"):
        kind(4, batch_size=4, save_dir=tmp_path / "run", **QUIET)(weight, mk.optimizers.SGD(0.1), data=x)
    assert not weight.paths()
    assert not list(tmp_path.iterdir())


class Means(scenarios.Scenario):
    """Returns what it was given: the number of its examples is their sum, and its shape the rank."""

    def update(self, batch: Any, *, weight: mk.Module) -> dict[str, Any]:
        weight.w.assign_add(0.0 * batch.sum())
        return {"sum": batch.sum(), "first": batch.reshape(-1)[0], "rank": jnp.ndim(batch)}


class Paired(Means):
    """Two batches an update."""

    batches_per_update = 2


class Chosen(Means):
    """Members with examples of their own: `[count, 3, batch]`."""

    def indices(self, size: int, step: int, count: int) -> Any:
        each = size // 3
        orders = [
            batch_indices(each, self.settings.batch_size, member, step, count) + member * each for member in range(3)
        ]
        return np.stack(orders, axis=1)


class Weight(mk.Module):
    """One number."""

    def __init__(self) -> None:
        super().__init__()
        self.w = mk.Variable(jnp.zeros([]), name="w")


def indices_of(scenario: Any, size: int, count: int) -> Any:
    return chosen(scenario, scenario.settings, size, 0, count)


def rows(scenario: type[scenarios.Scenario], data: Any, **settings: Any) -> list[dict[str, Any]]:
    run = scenario(12, log_interval=1, batch_size=4, **{**QUIET, **settings})
    return run(Weight(), data=data).history


@pytest.mark.parametrize("scenario", [Means, Paired, Chosen])
@pytest.mark.parametrize("steps_per_call", [None, 1, 5])
def test_examples_come_as_the_scenario_says_from_the_device_and_from_the_host(
    scenario: Any, steps_per_call: Any
) -> None:
    data = np.arange(60, dtype=np.float32)
    indices = indices_of(scenario(12, batch_size=4), 60, 12)
    expected = [data[chosen].sum() for chosen in indices]
    for on_device in (True, False):
        found = rows(scenario, data, data_on_device=on_device, steps_per_call=steps_per_call)
        assert [row["sum"] for row in found] == expected
        assert {row["rank"] for row in found} == {indices.ndim - 1}


def test_several_batches_of_a_stream_make_an_update() -> None:
    batches = [np.full([4], float(value), np.float32) for value in range(5)]
    found = rows(Paired, mk.data.stream(batches), steps_per_call=3)
    endless = itertools.cycle(range(5))
    assert [row["sum"] for row in found] == [4.0 * (next(endless) + next(endless)) for _ in range(12)]
    assert {row["rank"] for row in found} == {2}


def test_batches_left_over_at_the_end_of_a_stream_are_no_update() -> None:
    run = Paired(12, batch_size=4, **QUIET)
    result = run(Weight(), data=iter([np.ones([4], np.float32)] * 7))
    assert (result.step, result.reason) == (3, "the data is exhausted")


@pytest.mark.parametrize("scenario", [Paired, Chosen])
def test_a_bad_example_is_named_wherever_it_stands_in_the_update(scenario: Any) -> None:
    data = np.arange(60, dtype=np.float32)
    data[37] = np.nan
    with pytest.raises(scenarios.NonFiniteError) as caught:
        rows(scenario, data)
    indices = indices_of(scenario(12, batch_size=4), 60, 12)
    first = next(step for step, chosen in enumerate(indices) if (chosen == 37).any())
    assert (caught.value.step, caught.value.samples) == (first + 1, [37])


def test_the_number_of_examples_is_checked_before_anything_compiles() -> None:
    with pytest.raises(ValueError, match=r"^batch_size=4 is larger than the data's 3 examples"):
        rows(Paired, np.zeros([3], np.float32))


def test_what_is_measured_stands_beside_the_means_for_raw_and_averaged_weights() -> None:
    result, state = LOOKING.start(eval_interval=20, ema_decay=0.5)
    names = {"loss", "size", "counted", "draw", "at"}
    assert result.metrics.keys() == names | {f"ema_{name}" for name in names}
    assert result.metrics["size"] == np.abs(state["model.w"]).max()
    assert result.metrics["size"] != result.metrics["ema_size"]
    assert result.metrics["draw"] == result.metrics["ema_draw"]
    assert [row["eval_at"] for row in result.history if "eval_at" in row] == [20, 40, 60]


class Watching(Means):
    """Tells in its evaluation which step it is, and measures what the evaluation has found."""

    def evaluate(self, batch: Any, **parts: Any) -> dict[str, Any]:
        return {"at": jnp.full(len(batch), self.step), "value": batch}

    def measure(self, eval_data: Any, **parts: Any) -> dict[str, Any]:
        return {"twice": 2 * self.means["value"], "means": len(self.means)}


def test_an_evaluation_is_that_of_its_step_and_a_measurement_sees_its_means() -> None:
    scenario = Watching(6, batch_size=4, eval_interval=2, eval_batch_size=3, **QUIET)
    layer = mk.Linear(1)
    layer(jnp.ones([1, 1]))
    result = scenario(layer, data=np.ones([8], np.float32), eval_data=np.arange(8, dtype=np.float32))
    evaluations = [row for row in result.history if "eval_at" in row]
    assert [row["eval_at"] for row in evaluations] == [2.0, 4.0, 6.0]
    assert result.metrics == {"at": 6.0, "value": 3.5, "twice": 7.0, "means": 2.0}
    with pytest.raises(RuntimeError, match=r"^the means of an evaluation are known in `measure` while a run calls it"):
        _ = scenario.means


class Gathered(Looking):
    """Notes each context around its updates, in which another variable stands for the weights."""

    def __init__(self, steps: int, **settings: Any) -> None:
        super().__init__(steps, **settings)
        self.entered: list[Any] = []

    @contextmanager
    def around(self, batch: Any, *, model: Any, **parts: Any) -> Iterator[None]:
        self.entered.append(batch.shape)
        before = model.w.current()
        model.w.assign(2 * before)
        yield
        model.w.assign(model.w.current() / 2)


def test_a_loop_runs_in_the_context_that_a_scenario_puts_around_it() -> None:
    case = LOOKING.fresh()
    scenario = Gathered(**{**case.settings, "steps": 14})
    mk.build(case.parts["model"], [1, 3])
    first = case.state()["model.w"]
    scenario(data=case.data, **{**case.parts, "optimizer": mk.optimizers.SGD(0.0)})
    assert set(scenario.entered) == {(2, 5, 3)}
    np.testing.assert_array_equal(case.state()["model.w"], first)
    entered = len(scenario.entered)
    other = Gathered(**{**case.settings, "steps": 14, "ema_decay": 0.5})  # an average reads the weights of each step
    other(data=case.data, **{**case.parts, "optimizer": mk.optimizers.SGD(0.0)})
    assert not other.entered
    assert len(scenario.entered) == entered


def test_lists_of_models_are_averaged_and_lists_of_optimizers_have_slots() -> None:
    case = ROW["mixed_ensemble"].fresh()
    result = case.run(steps=20, ema_decay=0.5)
    assert result.ema is not None
    weights = [model.trainable_variables[-1] for model in case.parts["models"]]
    assert all(np.abs(result.ema[w].numpy() - w.numpy()).max() > 0 for w in weights)
    report = case.scenario(**{**case.settings, "steps": 20}).preflight(**case.parts, data=case.data, overfit=False)
    assert {part.name: part.is_optimizer for part in report.parts} == {"models": False, "optimizers": True}


def test_measurements_need_no_evaluation_data() -> None:
    case = LOOKING.fresh()
    result = case.replace(eval_data=None).run(eval_interval=20)
    assert result.metrics.keys() == {"size", "counted", "draw", "at"}


class Wrong(Means):
    """Measures no number."""

    def measure(self, eval_data: Any, *, weight: Any) -> Any:
        return {"values": jnp.zeros([2])}


def test_a_measurement_is_a_number() -> None:
    with pytest.raises(TypeError, match=r"^measure must return a dict of numbers; it returned "):
        rows(Wrong, np.ones([8], np.float32))


def test_pictures_are_written_at_each_evaluation(tmp_path: Path) -> None:
    _, state = LOOKING.start(save_dir=tmp_path, eval_interval=30, ema_decay=0.9)
    files = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert files == [f"{name}_{step:08d}.png" for name in ("ema_weights", "weights") for step in (30, 60)]
    shown = imread(tmp_path / "pictures" / "weights_00000060.png")[..., 0]
    assert np.abs(shown - np.clip(np.abs(state["model.w"]), 0, 1)).max() <= 0.5 / 255 + 1e-6  # eight bits


class Flat(Means):
    """Draws a line, which is no picture."""

    def pictures(self, eval_data: Any, *, weight: Any) -> Any:
        return {"line": jnp.zeros([5])}


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^picture 'line' must be \[height, width\] or \[height, width, 3\], not \[5\]$"
    ):
        rows(Flat, np.ones([8], np.float32), save_dir=tmp_path)


class Stepping(Means):
    """Names a metric as the history names its own column."""

    def update(self, batch: Any, *, weight: mk.Module) -> dict[str, Any]:
        return {**super().update(batch, weight=weight), "step": self.step}


def test_no_metric_takes_the_place_of_the_step() -> None:
    with pytest.raises(ValueError, match=r"^a metric cannot be named 'step', which is the history's own column"):
        rows(Stepping, np.ones([8], np.float32))


def test_alarms_are_told_logged_kept_and_survive_a_resume(tmp_path: Path) -> None:
    told: list[Any] = []
    LOOKING.start(save_dir=tmp_path, eval_interval=30)
    result, _ = LOOKING.start([told.append], save_dir=tmp_path, eval_interval=30, steps=90)
    assert list(result.alarms) == [(60, "counted 60"), (90, "counted 90")]
    assert [(e.step, e.message) for e in told if isinstance(e, scenarios.events.Alarm)] == [(90, "counted 90")]
    logged = [(line["step"], line["message"]) for line in log_lines(tmp_path) if line["event"] == "alarm"]
    assert logged == [(60, "counted 60"), (90, "counted 90")]


@pytest.mark.parametrize(
    ("shape", "columns", "expected"),
    [
        ((5, 4, 3), None, (9, 11)),
        ((5, 4, 3), 5, (4, 19)),
        ((2, 4, 3, 1), 1, (9, 3)),
        ((3, 2, 2, 3), 2, (5, 5, 3)),
    ],
)
def test_a_grid_holds_each_image_once(shape: Any, columns: Any, expected: Any) -> None:
    images = np.random.default_rng(0).uniform(0.1, 0.9, size=shape).astype(np.float32)
    picture = grid(images, columns)
    assert picture.shape == expected
    images = images[..., 0] if images.shape[-1] == 1 else images
    height, width = images.shape[1:3]
    for image in images:
        assert any(
            np.array_equal(picture[top : top + height, left : left + width], image)
            for top in range(0, picture.shape[0], height + 1)
            for left in range(0, picture.shape[1], width + 1)
        )


def test_a_grid_of_what_is_no_image_says_so() -> None:
    with pytest.raises(ValueError, match=r"^expected images \[count, height, width\], .* got \[3, 4\]$"):
        grid(np.zeros([3, 4]))


def test_everything_else_works_with_all_methods(tmp_path: Path) -> None:
    case = LOOKING.fresh()
    scenario = case.scenario(**{**case.settings, "steps": 20, "save_dir": tmp_path, "save_interval": 5})
    call = dict(case.parts, data=case.data, eval_data=case.eval_data)
    assert scenario.dry_run(**call).step == 2
    report = scenario.preflight(**call, overfit=False)
    assert report.inputs.batch_size * report.inputs.steps == 2 * 5 * 20
    scenario(**call)
    replay = scenario.replay(13, **call)
    assert replay.indices is not None
    assert replay.indices.tolist() == indices_of(scenario, 40, 13)[12].tolist()
    assert replay.metrics["before"] == 12
    case = LOOKING.fresh()
    assert scenario.reproduce(**case.parts, data=case.data, eval_data=case.eval_data).exact
