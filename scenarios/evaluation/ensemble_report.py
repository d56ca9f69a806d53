"""The report card of an ensemble: what each member is worth, what their average is worth, and how different they are."""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modulekit as mk
from modulekit.checkpoints import write_json
from modulekit.data import Arrays
from modulekit.losses import check_labels
from modulekit.metrics import Accuracy, BrierScore, CalibrationError, ExampleMetric, NegativeLogLikelihood, Total
from scenarios.base.calling import call_model, needs_is_training
from scenarios.base.strict_json import in_json
from scenarios.evaluation.forward import Forward
from scenarios.evaluation.plots import draw_ensemble
from scenarios.evaluation.tables import table

Array = np.ndarray[Any, Any]

AVERAGE = "average"
_LEAST = -1e30  # of a logarithm
SCORES = ("accuracy", "nll", "brier", "ece", "aurc")


@dataclass(frozen=True)
class EnsembleReport:
    """The outcome of an evaluation of an ensemble of classifiers.

    Attributes:
      scores: of each member ("member 0", ...) and of the averaged prediction ("average"): accuracy, negative log-likelihood,
        Brier score, expected calibration error, and area under the risk-coverage curve.
      gibbs: the Gibbs cross-entropy, `mean_k nll_k`: that of a member drawn at random for each example.
      gains: how much better the average is than the best member, by score; positive is better.
      disagreement: `[members, members]`, the share of examples for which two members predict different classes.
      divergence: `[members, members]`, `KL_ij = mean_x sum_c p_i(c) log(p_i(c) / p_j(c))`, in nats.
      mutual_information: `mean_x H(mean_k p_k) - mean_k H(p_k)`, in nats: 0 if the members agree.
      coverage: `[examples]`, shares of the examples, the most confident first.
      risk: `[examples]`, the error of the average on each of those shares.
      samples: how many examples there were.
      seconds: how long it took, compilation included.

    >>> import numpy as np
    >>> x, y = np.eye(3, dtype=np.float32), np.array([0, 1, 1])
    >>> report = ensemble_report([lambda x: 2 * x, lambda x: -x], data=(x, y))
    >>> report.scores["member 0"]["accuracy"], report.mean_disagreement
    (0.6666666865348816, 1.0)
    """

    scores: Mapping[str, Mapping[str, float]]
    gibbs: float
    gains: Mapping[str, float]
    disagreement: Array = field(repr=False)
    divergence: Array = field(repr=False)
    mutual_information: float
    coverage: Array = field(repr=False)
    risk: Array = field(repr=False)
    samples: int
    seconds: float

    @property
    def mean_disagreement(self) -> float:
        """The mean over all pairs of members; NaN for one member."""
        return _off_diagonal(self.disagreement)

    @property
    def mean_divergence(self) -> float:
        """The mean over all pairs of members, in both directions; NaN for one member."""
        return _off_diagonal(self.divergence)

    def __str__(self) -> str:
        """Shows the tables."""
        return self._text(level="")

    def in_json(self) -> dict[str, Any]:
        """Returns all numbers as strict JSON has them; null where there is none."""
        strict: dict[str, Any] = in_json({**dict(self._diversity()), **vars(self)})
        return strict

    def save(self, directory: str | os.PathLike[str], plots: bool = True) -> Path:
        """Writes `ensemble.json`, `ensemble.md` and the picture `ensemble.png`.

        Args:
          directory: made if missing; files of an earlier report are replaced.
          plots: whether to draw; needs matplotlib.

        Returns:
          The path of `ensemble.md`.

        Raises:
          ImportError: matplotlib is not installed; the numbers are written nevertheless.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "ensemble.json", self.in_json())
        text = folder / "ensemble.md"
        text.write_text(f"# Ensemble\n\n{self._text(level='## ')}\n", encoding="utf-8")
        if plots:
            accuracies = {name: row["accuracy"] for name, row in self.scores.items()}
            draw_ensemble(accuracies, self.disagreement, (self.coverage, self.risk), folder / "ensemble.png")
            with text.open("a", encoding="utf-8") as file:
                file.write("\n![Accuracies, disagreement, and risk by coverage](ensemble.png)\n")
        return text

    def _diversity(self) -> list[tuple[str, float]]:
        return [
            ("gibbs_cross_entropy", self.gibbs),
            ("mean_disagreement", self.mean_disagreement),
            ("mean_divergence", self.mean_divergence),
            ("mutual_information", self.mutual_information),
        ]

    def _text(self, level: str) -> str:
        rows = [[name, *(row[score] for score in SCORES)] for name, row in self.scores.items()]
        rows.append(["gain over the best member", *(self.gains[score] for score in SCORES)])
        return "\n\n".join(
            [
                f"{self.samples} examples in {self.seconds:.3g} seconds",
                table(["predictor", *SCORES], rows),
                f"{level}Diversity",
                table(["measure", "value"], self._diversity()),
                f"{level}Disagreement of members",
                table(["member", *map(str, range(len(self.disagreement)))], _numbered(self.disagreement)),
                f"{level}Divergence of members",
                table(["member", *map(str, range(len(self.divergence)))], _numbered(self.divergence)),
            ]
        )


def ensemble_report(ensemble: Iterable[Any], data: Any, batch_size: int = 1000) -> EnsembleReport:
    """Measures classifiers and the average of their probabilities, `p = mean_k softmax(f_k(x))`, in one pass over data.

    All models are called, not in training, by one compiled program, and none of their variables changes. Risk and coverage
    follow the largest probability; of examples with the same one, each counts as the mean of them.

    Args:
      ensemble: the members, models from inputs to logits `[batch, classes]`; such as a `scenarios.ensemble.EnsembleModel`.
      data: a pair (inputs, labels) of arrays, with integer labels `[examples]`.
      batch_size: examples per call; it changes no number.

    Returns:
      The report.

    Raises:
      ValueError: the outputs are no logits for the labels, a label is no class, or there are no members.

    Sources: Lakshminarayanan et al., Simple and scalable predictive uncertainty estimation using deep ensembles, 2017; Fort,
    Hu and Lakshminarayanan, Deep ensembles: a loss landscape perspective, 2019, for disagreement; Houlsby et al., Bayesian
    active learning for classification and preference learning, 2011, equation 2, for mutual information; Geifman and
    El-Yaniv, Selective classification for deep neural networks, 2017, for risk and coverage.

    >>> x, y = np.eye(3, dtype=np.float32), np.array([0, 1, 1])
    >>> ensemble_report([lambda x: 2 * x, lambda x: x], data=(x, y)).mutual_information < 0.05
    True
    """
    models = list(ensemble)
    if not models:
        raise ValueError("there are no members to report on: give at least one model")
    arrays = data.arrays if isinstance(data, Arrays) else data
    if not isinstance(arrays, tuple | list) or len(arrays) != 2:
        raise ValueError(f"data must be a pair (inputs, labels), not {type(arrays).__name__}")
    Arrays(tuple(arrays))  # checks that both count the same examples
    inputs, labels = Arrays(arrays[0]), np.asarray(arrays[1])
    forward, together = Forward(batch_size, None), _Together(models)
    _check(forward.shapes(together, inputs), labels)
    began = time.perf_counter()
    card = _Card(len(models))
    scored = []
    with forward.of(together, inputs) as outputs_of:
        for batch in forward.batches(inputs.size):
            scored.append(batch.true(card.add(outputs_of(batch), jnp.asarray(labels[batch.indices]), batch.mask)))
    confidences, wrong = (
        np.concatenate(columns).T for columns in zip(*scored, strict=True)
    )  # `[predictors, examples]`
    return card.report(confidences, wrong, inputs.size, time.perf_counter() - began)


class _Together:
    """Members as one model, whose output is a tuple of theirs."""

    def __init__(self, models: list[Any]) -> None:
        self.models = models
        self.needs_is_training = any(needs_is_training(model) for model in models)

    def __call__(self, x: Any, is_training: bool = False) -> tuple[Any, ...]:
        return tuple(call_model(model, x, is_training) for model in self.models)


class _Card:
    """What is added up over the examples, for each member and their average.

    There is one metric of each kind, and of its variables a value for each predictor, side by side.
    """

    def __init__(self, members: int) -> None:
        self._names = [*(f"member {k}" for k in range(members)), AVERAGE]
        self._metrics: dict[str, ExampleMetric] = {
            "accuracy": Accuracy(), "nll": NegativeLogLikelihood(), "brier": BrierScore(), "ece": CalibrationError()
        }  # fmt: skip
        self._pure, first = mk.functionalize(self._score, [v for m in self._metrics.values() for v in m.variables])
        self._values = [jnp.stack([value] * len(self._names)) for value in first]
        self._disagreement, self._divergence = Total([members, members]), Total([members, members])
        self._information, self._examples = Total([]), Total([], jnp.int32)
        self._program = mk.jit(self._add)

    def add(self, outputs: tuple[Any, ...], labels: Any, mask: Any) -> tuple[Any, Any]:
        """Adds a batch; returns the confidence of each predictor, `[batch, predictors]`, and whether it is wrong."""
        self._values, confidence, wrong = self._program(self._values, outputs, labels, mask)
        return confidence, wrong

    def _score(self, logits: Any, labels: Any, mask: Any) -> None:
        for metric in self._metrics.values():
            metric.update(logits, labels, mask=mask)

    def _add(self, values: list[Any], outputs: tuple[Any, ...], labels: Any, mask: Any) -> tuple[Any, Any, Any]:
        log_p = jax.nn.log_softmax(jnp.stack([jnp.asarray(o, jnp.float32) for o in outputs]))
        log_p = jnp.maximum(log_p, _LEAST)  # a class that is impossible adds zero to a mean, and not NaN
        average = jax.nn.logsumexp(log_p, axis=0) - jnp.log(len(outputs))
        each = jnp.concatenate([log_p, average[None]])
        _, values = jax.vmap(self._pure, (0, 0, None, None))(values, each, labels, mask)
        predicted, p = log_p.argmax(axis=-1).T, jnp.exp(log_p)
        differ = predicted[:, :, None] != predicted[:, None, :]
        negentropy = (p * log_p).sum(axis=-1)  # `[members, batch]`
        crossed = jnp.einsum("ibc,jbc->bij", p, log_p, precision="highest")
        self._disagreement.add(_counted(differ, mask))
        self._divergence.add(_counted(negentropy.T[:, :, None] - crossed, mask))
        information = negentropy.mean(axis=0) - (jnp.exp(average) * average).sum(axis=-1)
        self._information.add(_counted(information, mask))
        self._examples.add(mask)
        return values, jnp.exp(each.max(axis=-1)).T, (each.argmax(axis=-1) != labels).T

    def report(self, confidences: Array, wrong: Array, samples: int, seconds: float) -> EnsembleReport:
        """Returns the report of all examples."""
        curves = [_risk(confidence, errors) for confidence, errors in zip(confidences, wrong, strict=True)]
        scores: dict[str, dict[str, float]] = {}
        for place, (name, risk) in enumerate(zip(self._names, curves, strict=True)):
            self._pure.commit([value[place] for value in self._values])
            scores[name] = {score: float(metric.value) for score, metric in self._metrics.items()}
            scores[name]["aurc"] = float(risk.mean())
        members = [scores[name] for name in self._names[:-1]]
        gains = {score: min(row[score] for row in members) - scores[AVERAGE][score] for score in SCORES}
        gains["accuracy"] = scores[AVERAGE]["accuracy"] - max(row["accuracy"] for row in members)
        count = float(self._examples.value)
        return EnsembleReport(
            scores,
            float(np.mean([row["nll"] for row in members])),
            gains,
            np.asarray(self._disagreement.value, np.float64) / count,
            np.maximum(np.asarray(self._divergence.value, np.float64) / count, 0),  # but for rounding, it is
            max(float(self._information.value) / count, 0.0),
            np.arange(1, samples + 1) / samples,
            curves[-1],
            samples,
            seconds,
        )


def _risk(confidence: Array, wrong: Array) -> Array:
    """Returns the error on the most confident example, on the two most confident ones, and so on, `[examples]`."""
    _, group, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    errors = np.bincount(group, wrong.astype(np.float64)) / sizes  # of examples that are equally confident, the mean
    risk: Array = np.cumsum(np.repeat(errors, sizes)) / np.arange(1, len(wrong) + 1)
    return risk


def _check(outputs: tuple[Any, ...], labels: Array) -> None:
    for member, output in enumerate(outputs):
        shape = getattr(output, "shape", None)
        if shape is None or len(shape) != 2 or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            given = "a structure" if shape is None else str(list(shape))
            raise ValueError(
                "a report on an ensemble needs logits [batch, classes] and integer labels [examples]; "
                f"member {member} gives {given}, and the labels are {labels.dtype}{list(labels.shape)}"
            )
        if shape != outputs[0].shape:
            raise ValueError(f"member {member} gives {list(shape)}, and member 0 {list(outputs[0].shape)}")
        check_labels(jnp.asarray(labels), shape[1])


def _counted(values: Any, mask: Any) -> Any:
    """Returns values `[batch, ...]` with zeros for the examples that do not count."""
    return jnp.where(jnp.reshape(mask, (-1, *[1] * (values.ndim - 1))), values.astype(jnp.float32), 0.0)


def _off_diagonal(matrix: Array) -> float:
    apart = matrix[~np.eye(len(matrix), dtype=bool)]
    return float(apart.mean()) if len(apart) else float("nan")


def _numbered(matrix: Array) -> list[list[Any]]:
    return [[row, *values] for row, values in enumerate(matrix.tolist())]
