"""The metrics of a run as TensorBoard's event files."""

import time
from collections.abc import Mapping
from typing import Any

from scenarios.base.events import Evaluated, Event, Finished, Logged, Started
from scenarios.hooks.place import Given, place_of


class TensorBoard:
    """Writes scalars for TensorBoard: `train/loss` and so on from updates, `eval/loss` from evaluations.

    Each is on its way to the disk before the run goes on. A run that resumes begins a file which tells TensorBoard to forget
    what came after the saved step. Needs tensorboardX, the extra `tensorboard`; TensorBoard itself is not needed.

    Args:
      path: a directory; `tensorboard` in the run's directory if None.

    Raises:
      ImportError: tensorboardX is not installed.
      ValueError: when the run starts, if there is no place to write to.

    >>> import pathlib, tempfile, jax.numpy as jnp, modulekit as mk, scenarios
    >>> x, fit = jnp.ones([4, 1]), scenarios.Supervised(4, batch_size=4, log_interval=2, progress=False)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     board = TensorBoard(directory)
    ...     result = fit(mk.Linear(1), mk.optimizers.SGD(0.1), mk.losses.squared_error, data=(x, x), hooks=[board])
    ...     len(list(pathlib.Path(directory).glob("events.out.tfevents.*")))
    1
    """

    def __init__(self, path: Given = None) -> None:
        try:
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto import event_pb2
        except ImportError as error:
            raise ImportError("TensorBoard() needs tensorboardX: pip install 'modulekit[tensorboard]'") from error
        self._given = path
        self._open = event_file_writer.EventsWriter  # which writes at once; SummaryWriter leaves it to another thread
        self._scalar, self._messages = summary.scalar, event_pb2
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Writes the event's metrics."""
        if isinstance(event, Started):
            directory = place_of("TensorBoard", self._given, event, "tensorboard")
            directory.mkdir(exist_ok=True)
            self._writer = self._open(str(directory / "events"), f".{time.time_ns()}")
            begins = self._messages.SessionLog(status=self._messages.SessionLog.START)
            self._write(event.step + 1, session_log=begins)  # from there on, other files do not count
        elif isinstance(event, Logged):
            self._add("train", event.step, event.metrics)
        elif isinstance(event, Evaluated):
            self._add("eval", event.step, event.metrics)
        elif isinstance(event, Finished) and self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            return
        for name, value in metrics.items():
            self._write(step, summary=self._scalar(f"{group}/{name}", value))

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._messages.Event(wall_time=time.time(), step=step, **content))
        self._writer.flush()
