"""A run in small, and taken back: what would fail after an hour fails now."""

import tempfile
from dataclasses import replace
from pathlib import Path

import modulekit as mk
from modulekit.data import Stream
from scenarios.base.hooks import hook_states, set_hook_states
from scenarios.base.result import Result
from scenarios.base.run import Run

_STEPS = 2


def rehearse(run: Run) -> Result:
    """Runs two updates, an evaluation of one batch, a save, and a resume from it; then all variables are as before.

    Args:
      run: the run; nothing is written in its directory.
    """
    settings, memory = run.settings, hook_states(run.hooks)
    position = run.examples.state() if isinstance(run.examples, Stream) else {}
    eval_data = None
    if run.eval_examples is not None:
        eval_data = run.eval_examples.take(slice(0, settings.eval_batch_size))
    with tempfile.TemporaryDirectory() as folder, mk.trial() as trial:
        small = replace(
            settings, steps=min(_STEPS, settings.steps), save_dir=Path(folder), save_interval=1, eval_interval=1,
            log_interval=1, progress=False,
        )  # fmt: skip
        result = replace(run, settings=small, eval_data=eval_data)()
        replace(run, settings=small, eval_data=eval_data)()
        trial.rollback()
    set_hook_states(run.hooks, memory)
    if isinstance(run.examples, Stream) and run.examples.resumable:
        run.examples.restore(position)
    return replace(result, save_dir=None)
