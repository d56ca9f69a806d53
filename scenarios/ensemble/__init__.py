"""Ensembles: models that are trained independently and predict together.

`Ensemble` trains a list of models, side by side in one program where their updates are the same. `SnapshotEnsemble` takes
the members from one run of one model. `EnsembleModel` is an ensemble as a model: its prediction is the average.
`scenarios.evaluation.ensemble_report` says what it is worth.
"""

from scenarios.ensemble.ensemble import Ensemble
from scenarios.ensemble.ensemble_model import EnsembleModel
from scenarios.ensemble.snapshot_ensemble import SnapshotEnsemble

__all__ = ["Ensemble", "EnsembleModel", "SnapshotEnsemble"]
