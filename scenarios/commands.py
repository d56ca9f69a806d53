"""The command line's verbs: what can be done with the directory of a run.

`resume`, `evaluate`, `replay`, `reproduce` and `export` start the run's own program once more, since it alone makes the
same models and data; `report` and `compare` read files. `list` needs no directory.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

import modulekit as mk
from modulekit.checkpoints import write_json
from modulekit.data import Arrays
from modulekit.errors import CheckpointError
from scenarios.base.calling import needs_is_training
from scenarios.base.progress import text_of
from scenarios.base.repetition import repeat
from scenarios.base.replaying import replay as replay_step
from scenarios.base.run import Run
from scenarios.base.saving import open_store
from scenarios.evaluation.compare import compare as compare_runs
from scenarios.evaluation.run_report import run_report
from scenarios.listing import EXPORTERS, print_list
from scenarios.plugins import PluginError, kind_of, load
from scenarios.program import ask_program, start_again

Directory = Annotated[Path, tyro.conf.Positional]
Step = int | Literal["latest", "best"]


def resume(directory: Directory) -> None:
    """Goes on with a run from its newest saved state.

    Args:
      directory: the run's directory.
    """
    start_again(directory.resolve())


def evaluate(directory: Directory, step: Step = "latest") -> None:
    """Evaluates a saved state, averaged weights beside raw ones, and writes evaluation.json.

    Args:
      directory: the run's directory.
      step: of the state: its number, `latest` or `best`.
    """
    found, means = ask_program(directory, functools.partial(_evaluate, step=step))
    write_json(directory / "evaluation.json", {"step": found, "metrics": means})
    print(f"step {found}: {text_of(means)}")


def report(directory: Directory, to: Path | None = None) -> None:
    """Writes the story of a run: curves, the best evaluation, where time went.

    Args:
      directory: the run's directory.
      to: where to write; `report` in the run's directory if not given.
    """
    print(run_report(directory, to))


def compare(a: Directory, b: Directory, to: Path | None = None) -> None:
    """Compares two runs: what they were made of, and what came of it.

    Args:
      a: the first run's directory.
      b: the second run's directory.
      to: where to write the comparison with its picture; nowhere if not given.
    """
    comparison = compare_runs(a, b)
    print(comparison)
    if to is not None:
        comparison.save(to)


def reproduce(directory: Directory, steps: int = 20) -> None:
    """Runs the first steps of a run again, and compares the losses; exits with 1 where they differ.

    Args:
      directory: the run's directory.
      steps: how many, at most 100.
    """
    repetition = ask_program(directory, functools.partial(repeat, steps=steps))
    print(repetition)
    if not repetition.exact:
        raise SystemExit(1)


def replay(directory: Directory, step: int) -> None:
    """Rebuilds a step, and writes its examples to replay/step_N.npz.

    Args:
      directory: the run's directory.
      step: its number, the first one being 1.
    """
    target = directory.resolve() / "replay" / f"step_{step}.npz"
    replayed = ask_program(directory, functools.partial(replay_step, step=step))
    leaves = {f"batch{jax.tree_util.keystr(p)}": np.asarray(a) for p, a in jax.tree.leaves_with_path(replayed.batch)}
    target.parent.mkdir(exist_ok=True)
    with target.open("wb") as file:
        np.savez(file, allow_pickle=False, **leaves)
    print(f"{replayed}\n  {target}")


def export(
    directory: Directory, to: Path, part: str = "model", step: Step = "latest", exporter: str = "bundle"
) -> None:
    """Writes a model as a program that runs without this library.

    Args:
      directory: the run's directory.
      to: the directory of the bundle, or what else the exporter writes.
      part: which part of the run it is, as the scenario calls it.
      step: of the state: its number, `latest` or `best`.
      exporter: `bundle`, `onnx`, or that of a plug-in.
    """
    write = _exporter(exporter)
    found = ask_program(directory, functools.partial(_export, to=to.resolve(), part=part, step=step, write=write))
    print(f"{part} after step {found}: {to}")


def list_plugins() -> None:
    """Lists scenarios, hooks and exporters: the built-in ones, and those of plug-ins, with what is wrong with them."""
    print_list()


def _number(run: Run, step: Step) -> int | None:
    """Returns the number of a saved state; None for the newest."""
    if step == "latest" or run.settings.directory is None:
        return None
    store = open_store(run.settings.directory, run.settings)
    try:
        number = store.best() if step == "best" else step
        if number is None or number not in store.steps():
            raise CheckpointError(f"{store.directory} holds no state {step!r}: {store.steps()}")
        return number
    finally:
        store.close()


def _evaluate(run: Run, step: Step) -> tuple[int, Any]:
    with run.prepared(_number(run, step)) as prepared:
        if prepared.evaluator is None:
            raise CheckpointError(f"{run.name} was called without eval_data, or has no method evaluate(batch, **parts)")
        return prepared.progress.step, prepared.evaluator.means(prepared.progress.step)


def _exporter(name: str) -> Callable[..., None]:
    found: Callable[..., None] = EXPORTERS[name] if name in EXPORTERS else load(name)
    if kind_of(found) != "exporter":
        raise PluginError(f"the plug-in {name!r} is a {kind_of(found)}, and no exporter")
    return found


def _export(run: Run, to: Path, part: str, step: Step, write: Callable[..., None]) -> int:
    if part not in run.parts or not isinstance(run.parts[part], mk.Module):
        modules = [name for name, value in run.parts.items() if isinstance(value, mk.Module)]
        raise CheckpointError(f"the run has no part {part!r} to export: {', '.join(modules)}")
    model = run.parts[part]
    with run.prepared(_number(run, step)) as prepared:
        batch = prepared.feed.batch if not isinstance(run.examples, Arrays) else run.examples.take(slice(0, 2))
        inputs = batch[0] if isinstance(batch, tuple | list) else batch
        options: dict[str, Any] = {"is_training": False} if needs_is_training(model) else {}
        write(to, model, inputs, **options)
        return prepared.progress.step


VERBS: dict[str, Callable[..., None]] = {
    **{verb.__name__: verb for verb in (resume, evaluate, report, compare, reproduce, replay, export)},
    "list": list_plugins,
}
