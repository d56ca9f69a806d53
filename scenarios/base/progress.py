"""Progress: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scenarios.base.events import Alarm, Evaluated, Event, Finished, Logged, Progressed, Started

_SECONDS_BETWEEN_LINES = 5.0


def text_of(metrics: Mapping[str, float]) -> str:
    """Returns metrics as `loss 0.1520  accuracy 0.981`.

    >>> text_of({"loss": 0.15203, "accuracy": 1.0})
    'loss 0.1520  accuracy 1.0000'
    """
    return "  ".join(f"{name} {value:{'.4g' if abs(value) < 1e-3 else '.4f'}}" for name, value in metrics.items())


class ProgressBar:
    """Shows a bar with the metrics of the last update and of the last evaluation."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[train]}"),
            TextColumn("[cyan]{task.fields[evaluation]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def __call__(self, event: Event) -> None:
        """Updates the bar."""
        if isinstance(event, Started):
            self._task = self._bar.add_task(
                event.scenario, total=event.steps, completed=event.step, train="", evaluation=""
            )
            self._bar.start()
        elif isinstance(event, Progressed):
            self._bar.update(self._task, completed=event.step, train=text_of(event.metrics))
        elif isinstance(event, Evaluated):
            self._bar.update(self._task, evaluation="eval " + text_of(event.metrics))
        elif isinstance(event, Alarm):
            self._bar.console.print(f"step {event.step}: {event.message}", style="bold red", markup=False)
        elif isinstance(event, Finished):
            self._bar.stop()


class ProgressLines:
    """Prints a line now and then, for logs that are no terminal; and one for each evaluation."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = monotonic()

    def __call__(self, event: Event) -> None:
        """Prints the event, or leaves it out if another line was printed just before."""
        if isinstance(event, Started):
            self._steps = event.steps
            self._print(f"{event.scenario}: step {event.step} of {event.steps}")
        elif isinstance(event, Logged) and monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._print(f"step {event.step} of {self._steps}: {text_of(event.metrics)}")
        elif isinstance(event, Evaluated):
            self._print(f"step {event.step} of {self._steps}: evaluation {text_of(event.metrics)}")
        elif isinstance(event, Alarm):
            self._print(f"step {event.step} of {self._steps}: {event.message}")
        elif isinstance(event, Finished):
            self._print(f"step {event.step}: {event.reason}")

    def _print(self, line: str) -> None:
        self._last = monotonic()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def progress_hook() -> ProgressBar | ProgressLines:
    """Returns what suits the standard error stream: a bar on a terminal, else lines."""
    console = Console(stderr=True)
    return ProgressBar(console) if console.is_terminal else ProgressLines(console)
