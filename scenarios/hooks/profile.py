"""A profile of some updates: what the devices and the host did, for TensorBoard or Perfetto."""

import warnings
from pathlib import Path

import jax

from scenarios.base.events import Event, Finished, Started
from scenarios.hooks.idle import idle_share
from scenarios.hooks.place import Given, place_of


class Profile:
    """Traces a run with JAX's profiler from one update to another, and always ends the trace with the run.

    It begins at the first event at or after update `start` and ends at the first one `steps` or more updates later, so that
    programs of many updates are traced whole. What the run compiles is traced as well, if it comes in between.

    Args:
      start: the update after which the trace begins; 0 for the beginning.
      steps: how many updates are traced at least.
      directory: for the trace; `profile` in the run's directory if None.

    Raises:
      ValueError: `start` is below 0 or `steps` below 1; or, when the run starts, there is no place to write to.

    Source: JAX, `jax.profiler.start_trace`.

    >>> import pathlib, tempfile, jax.numpy as jnp, modulekit as mk, scenarios
    >>> x, fit = jnp.ones([4, 1]), scenarios.Supervised(8, batch_size=4, steps_per_call=2, progress=False)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     profile = Profile(start=4, steps=2, directory=directory)
    ...     result = fit(mk.Linear(1), mk.optimizers.SGD(0.1), mk.losses.squared_error, data=(x, x), hooks=[profile])
    ...     len(list(pathlib.Path(directory).rglob("*.xplane.pb")))
    1
    """

    def __init__(self, start: int, steps: int, directory: Given = None) -> None:
        for name, value, lowest in (("start", start, 0), ("steps", steps, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ValueError(f"{name}={value!r}: expected an integer of at least {lowest}, a number of updates")
        self._start = start
        self._steps = steps
        self._given = directory
        self._place = None if directory is None else Path(directory)
        self._end: int | None = None  # of the running trace
        self._is_done = False

    def __call__(self, event: Event) -> None:
        """Begins or ends the trace, if it is time."""
        if isinstance(event, Started):
            self._place = place_of("Profile", self._given, event, "profile")
            self._is_done = False
        if isinstance(event, Finished):
            self._finish(event)
        elif self._end is not None:
            if event.step >= self._end:
                self._stop()
        elif not self._is_done and event.step >= self._start:
            jax.profiler.start_trace(str(self._place))
            self._end = event.step + self._steps

    def idle_share(self) -> float | None:
        """Returns the share of the time between the first and the last program of the trace in which a device did nothing.

        Of several accelerators it is the one that waited longest; CPU devices count as one. The profiler's own work on the
        host counts as waiting.

        Returns:
          The share, from 0 to 1; None if the trace shows no program.

        Raises:
          FileNotFoundError: there is no trace.

        Source: JAX, `jax.profiler.ProfileData`.

        >>> import tempfile, jax.numpy as jnp, modulekit as mk, scenarios
        >>> x, fit = jnp.ones([4, 1]), scenarios.Supervised(40, batch_size=4, steps_per_call=4, progress=False)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     profile = Profile(start=20, steps=12, directory=directory)
        ...     result = fit(mk.Linear(1), mk.optimizers.SGD(0.1), mk.losses.squared_error, data=(x, x), hooks=[profile])
        ...     0 <= profile.idle_share() < 1
        True
        """
        if self._place is None:
            raise FileNotFoundError("Profile has no trace yet: it takes one in a run that it is a hook of")
        return idle_share(self._place)

    def _finish(self, event: Finished) -> None:
        if self._end is not None:
            self._stop()
        elif not self._is_done and event.step < self._start:
            warnings.warn(
                f"Profile(start={self._start}) has traced nothing: the run ended after update {event.step}",
                stacklevel=2,
            )

    def _stop(self) -> None:
        self._end, self._is_done = None, True
        jax.profiler.stop_trace()
