"""An intake: gradients that were computed apart come in, become one, and make one step of an optimizer.

The life of an intake. It has a *version*, the number of steps that it has made. Contributions name the version of the
weights at which they were computed; what does not fit, or was there already, is refused with a reason. `apply` adds up what
has come in, takes the step, and begins the next version. The sum is taken in float64, in the order of versions and ids, so
that the order in which contributions arrive changes no bit.

With a directory, nothing that was accepted is lost when the process is killed. A contribution is on disk before its receipt
says that it is accepted. `apply` changes the variables in memory, then writes weights, slots and the number of the new
version to one file, which takes the place of the former one at once, and then deletes the contributions. Whoever opens the
directory after a kill before that moment finds the old weights and all contributions, and the same step can be taken again,
bit for bit; after a kill behind it, the new weights, and what is left of older versions is deleted.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import modulekit as mk
from modulekit.core.matching import matched
from modulekit.core.places import Parts, places
from modulekit.errors import CheckpointError
from scenarios.aggregation.archive import Archive, slots_made
from scenarios.aggregation.receipt import Aggregate, Array, Contribution, Key, Receipt
from scenarios.aggregation.rules import Rule, mean

MAX_ID = 200  # characters
_MAX_WEIGHT = 2.0**53  # up to which numbers of samples are exact
_MAX_VERSION = 2**63


class Intake:
    """Takes gradients that were computed elsewhere, and applies them as one.

    All methods may be called from several threads. The variables must not be trained by others at the same time.

    Args:
      parameters: what is trained: a module that has its variables, modules and variables by name, or variables.
      directory: where contributions and weights are kept, so that a kill loses nothing; None for memory alone. If it holds
        the weights of an intake, the variables get their values. It belongs to this process while the intake lives.
      aggregate: the rule by which several gradients become one, such as `mean`, or
        `functools.partial(trimmed_mean, share=0.2)`.
      max_staleness: how many versions old the weights may be at which a contribution was computed.
      capacity: how many contributions one step takes at most; it bounds the memory.

    Raises:
      ValueError: there is nothing to train, or a number is out of range.
      CheckpointError: the directory holds something else, or another process uses it.
      OSError: the directory cannot be written.

    >>> import modulekit as mk
    >>> w = mk.Variable([1.0, 1.0], name="w")
    >>> intake = Intake([w])
    >>> intake.submit({"w": np.array([1.0, 0.0], np.float32)}, weight=3, id="ann", version=0)
    Receipt(accepted=True, reason='')
    >>> print(intake.submit({"w": np.array([5.0, 4.0], np.float32)}, weight=1, id="ann", version=0).reason)
    'ann' has already contributed to version 0: each id counts once
    >>> bool(intake.submit({"w": np.array([5.0, 4.0], np.float32)}, weight=1, id="bob", version=0))
    True
    >>> intake.total().gradients["w"].tolist()
    [2.0, 1.0]
    >>> _ = intake.apply(mk.optimizers.SGD(0.5))
    >>> intake.version, w.numpy().tolist()
    (1, [0.0, 0.5])
    """

    def __init__(
        self,
        parameters: Parts | Sequence[mk.Variable],
        directory: str | os.PathLike[str] | None = None,
        aggregate: Rule = mean,
        max_staleness: int = 0,
        capacity: int = 10_000,
    ) -> None:
        _check_integer("max_staleness", max_staleness, 0)
        _check_integer("capacity", capacity, 1)
        self._parameters = _named(parameters)
        self._places = {place.variable: place.paths for place in places(self._parameters)}
        self._trained = {variable: paths for variable, paths in self._places.items() if variable.trainable}
        if not self._trained:
            raise ValueError(f"{parameters!r} has no trainable variables: there is nothing to aggregate gradients for")
        self.aggregate = aggregate
        self.max_staleness = max_staleness
        self.capacity = capacity
        self._version = 0
        self._is_closed = False
        self._held: dict[Key, Contribution] = {}
        self._applied: set[Key] = set()  # of versions from which contributions still come
        self._changed = threading.Condition()  # and the lock of all of this
        self._slots_wait_on_disk = False
        self._step: tuple[mk.Optimizer, Callable[..., None]] | None = None
        self._archive = None if directory is None else Archive(directory)
        if self._archive is not None:
            self._reopen(self._archive)

    # What is there.

    @property
    def version(self) -> int:
        """The number of steps made."""
        return self._version

    @property
    def keys(self) -> tuple[Key, ...]:
        """The versions and ids of the contributions to the next step, in the order in which they are added up."""
        with self._changed:
            return tuple(sorted(self._held))

    @property
    def forms(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """The shapes and dtypes of the gradients by path; a tied variable is there once."""
        return {paths[0]: (variable.shape, variable.dtype) for variable, paths in self._trained.items()}

    def weights(self) -> tuple[int, dict[str, Array]]:
        """Returns the version, and a copy of each variable by path, those that are not trained included."""
        with self._changed:
            return self._version, {paths[0]: np.array(v.current()) for v, paths in self._places.items()}

    def wait(self, count: int, timeout: float | None = None) -> bool:
        """Waits for contributions.

        Args:
          count: how many the next step should have.
          timeout: seconds to wait at most; None for any.

        Returns:
          Whether there are so many.
        """
        with self._changed:
            return self._changed.wait_for(lambda: len(self._held) >= count, timeout)

    # What comes in.

    def submit(self, gradients: Mapping[str, Any], weight: float, id: str, version: int) -> Receipt:
        """Takes a contribution, or refuses it and changes nothing.

        Args:
          gradients: a NumPy or JAX array for the path of each trainable variable, of its shape and dtype; a tied variable
            has one. Their values are copied.
          weight: how many samples they are the mean of, a positive number.
          id: of the contribution, a text of at most 200 characters; one of each version counts.
          version: of the weights at which they were computed.

        Returns:
          Whether it was accepted, and why not.

        Raises:
          OSError: it could not be written to the directory. It does not count.
        """
        with self._changed:
            reason = self._objection(id, version) or weight_objection(weight)
            if reason:
                return Receipt(False, reason)
            try:
                copies = self._fitting(gradients, float(weight))
            except ValueError as error:
                return Receipt(False, str(error))
            contribution = Contribution(id, int(version), float(weight), copies)
            if self._archive is not None:
                self._archive.keep(contribution)
            self._held[contribution.key] = contribution
            self._changed.notify_all()
            return Receipt(True)

    def _objection(self, id: Any, version: Any) -> str:
        """Returns what speaks against a contribution of this id and version; nothing if all is well."""
        if not isinstance(id, str) or not 0 < len(id) <= MAX_ID or not _is_unicode(id):
            return f"id={_shortened(id)}: expected a text of 1 to {MAX_ID} characters"
        if isinstance(version, bool) or not isinstance(version, int | np.integer) or not 0 <= version < _MAX_VERSION:
            return f"version={_shortened(version)}: expected the number of the weights' version, now {self._version}"
        if version > self._version:
            return f"version {version} is not there yet: the weights are those of version {self._version}"
        if version < self._version - self.max_staleness:
            return (
                f"version {version} is stale: the weights are those of version {self._version}, and max_staleness="
                f"{self.max_staleness}. Compute the gradients at the newest weights"
            )
        if (int(version), id) in self._held or (int(version), id) in self._applied:
            return f"{id!r} has already contributed to version {version}: each id counts once"
        if self._is_closed:
            return f"version {self._version} is closed: wait for the next"
        if len(self._held) >= self.capacity:
            return f"the intake is full: {self.capacity} contributions wait to be applied"
        return ""

    def _fitting(self, gradients: Any, weight: float) -> dict[str, Array]:
        """Returns copies of gradients that fit, or raises `ValueError`."""
        if not isinstance(gradients, Mapping):
            raise ValueError(f"gradients are a dict of arrays by path, not {type(gradients).__name__}")
        arrays = {str(path): _array(path, gradient) for path, gradient in gradients.items()}
        fitting = matched("the intake", self._trained, arrays, "gradient")
        copies = {paths[0]: np.array(fitting[v], order="C") for v, paths in self._trained.items()}
        largest = max((float(np.max(abs(copy), initial=0)) for copy in copies.values()), default=0.0)
        if not np.isfinite(largest * weight * self.capacity):
            raise ValueError(f"gradients up to {largest:g} times weight={weight:g} are too large to be added up")
        return copies

    # What becomes of it.

    def total(self) -> Aggregate:
        """Returns what the contributions so far amount to.

        Raises:
          ValueError: there is none, or the rule's result does not fit the variables.
        """
        with self._changed:
            held = [self._held[key] for key in sorted(self._held)]
            if not held:
                raise ValueError(f"version {self._version} has no contributions yet: submit some, or wait for them")
            weights = np.array([contribution.weight for contribution in held], np.float64)
            stacked = {
                path: np.stack([c.gradients[path].astype(np.promote_types(dtype, np.float64)) for c in held])
                for path, (_, dtype) in self.forms.items()
            }
            found = self.aggregate(stacked, weights)
            gradients = {path: np.asarray(found[path]).astype(dtype) for path, (_, dtype) in self.forms.items()}
            rule = getattr(self.aggregate, "__name__", repr(self.aggregate))
            matched(f"the intake after {rule}", self._trained, gradients, "gradient")
            return Aggregate(gradients, float(weights.sum()), tuple(c.key for c in held))

    def close(self) -> Aggregate:
        """Takes no more contributions until `apply` begins the next version; returns the total.

        Raises:
          ValueError: there are no contributions. The intake stays open.
        """
        with self._changed:
            total = self.total()
            self._is_closed = True
            return total

    def apply(self, optimizer: mk.Optimizer) -> Aggregate:
        """Takes one step with the total, and begins the next version.

        Args:
          optimizer: takes the gradients. In a directory that was opened again, its slots get their saved values first.

        Returns:
          What was applied.

        Raises:
          ValueError: there are no contributions, or the rule's result does not fit. Nothing has changed.
          OSError: the new weights could not be written. Nothing has changed.
          CheckpointError: the saved slots are those of another optimizer. Nothing has changed.
        """
        with self._changed:
            total = self.total()
            applied = {key for key in {*self._applied, *total.keys} if key[0] >= self._version + 1 - self.max_staleness}
            with mk.trial():
                self._restore_slots(optimizer)
                gradients = [total.gradients[path] for path in self.forms]
                self._step_of(optimizer)(gradients, np.float32(total.weight))
                if self._archive is not None:
                    self._archive.save(_record(self._version + 1, applied), self._parameters, optimizer)
            self._slots_wait_on_disk = False
            self._version += 1
            self._applied, self._held, self._is_closed = applied, {}, False
            if self._archive is not None:
                self._archive.remove(total.keys)
            self._changed.notify_all()
            return total

    def _step_of(self, optimizer: mk.Optimizer) -> Callable[..., None]:
        """Returns the step of an optimizer as one program."""
        if self._step is None or self._step[0] is not optimizer:
            variables = list(self._trained)

            def step(gradients: list[Any], weight: Any) -> None:
                optimizer.apply_gradients(list(zip(gradients, variables, strict=True)), weight=weight)

            self._step = optimizer, mk.jit(step)
        return self._step[1]

    # What is found on disk.

    def _reopen(self, archive: Archive) -> None:
        record = archive.record()
        if record is None:
            archive.save(_record(0, ()), self._parameters, None)  # gradients of version 0 belong to these very weights
        else:
            archive.restore(self._parameters)
            self._version, self._slots_wait_on_disk = record["version"], True
            self._applied = {(version, name) for version, name in record["applied"]}
        for found in archive.contributions():
            if found.key in self._applied or found.version < self._version - self.max_staleness:
                archive.remove([found.key])
                continue
            try:
                self._fitting(found.gradients, found.weight)
            except ValueError as error:
                raise CheckpointError(
                    f"{archive.directory} holds a contribution of {found.id!r} for other parameters: {error}"
                ) from error
            self._held[found.key] = found

    def _restore_slots(self, optimizer: mk.Optimizer) -> None:
        if self._slots_wait_on_disk and self._archive is not None and self._version > 0:
            slots_made(optimizer, self._trained)
            self._archive.restore(self._parameters, optimizer)


def _record(version: int, applied: Any) -> dict[str, Any]:
    return {"version": version, "applied": sorted(applied)}


def _named(parameters: Parts | Sequence[mk.Variable]) -> Parts:
    """Returns modules and variables by name; plain variables by their own."""
    if isinstance(parameters, mk.Module | Mapping):
        return parameters
    named: dict[str, mk.Module | mk.Variable] = {}
    for variable in parameters:
        if not isinstance(variable, mk.Variable):
            raise TypeError(f"expected a module, or variables, not {variable!r}: give modules by name, in a dict")
        if variable.name in named:
            raise ValueError(f"two variables are named {variable.name!r}: give them other names, in a dict")
        named[variable.name] = variable
    return named


def _array(path: Any, gradient: Any) -> Array:
    try:
        array = np.asarray(gradient)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the gradient of {_shortened(path)} is no array: {error}") from error
    if array.dtype.kind in "OSUMmT" or array.dtype.type is np.void:
        raise ValueError(f"the gradient of {_shortened(path)} holds {array.dtype}, and no numbers")
    return array


def weight_objection(weight: Any) -> str:
    """Returns what speaks against a number of samples; nothing if all is well."""
    is_number = isinstance(weight, int | float | np.integer | np.floating) and not isinstance(weight, bool)
    if not is_number or not 0 < weight <= _MAX_WEIGHT:
        return (
            f"weight={_shortened(weight)}: expected how many samples the gradients are the mean of, a positive number"
        )
    return ""


def _check_integer(name: str, value: Any, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected an integer of at least {lowest}")
    if value < lowest:
        raise ValueError(f"{name}={value} is below {lowest}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shortened(value: Any) -> str:
    """Returns a value that came from anywhere, for a message."""
    try:
        text = repr(value)
    except Exception:  # whatever an object of the sender's does; a number may have too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"
