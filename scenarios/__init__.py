"""Training scenarios: how models are trained, as objects that know nothing of the models."""

import os

from modulekit.core import provenance
from scenarios import aggregation, ensemble, evaluation, gan, hooks, plugins, testing
from scenarios.aggregation import AggregatedGradients
from scenarios.autoencoders import (
    DenoisingAutoencoder,
    TiedAutoencoder,
    VariationalAutoencoder,
    VectorQuantizedAutoencoder,
)
from scenarios.base import events
from scenarios.base.hooks import Hook, Stop
from scenarios.base.mesh_plan import MeshPlan
from scenarios.base.nonfinite import NonFiniteError
from scenarios.base.preflight import Preflight
from scenarios.base.repetition import Repetition
from scenarios.base.replaying import Replay
from scenarios.base.result import Result
from scenarios.base.scenario import Scenario
from scenarios.base.settings import Settings
from scenarios.base.verification import ResumeError, Verification
from scenarios.distillation import Distillation
from scenarios.ensemble import Ensemble, SnapshotEnsemble
from scenarios.gan import GAN
from scenarios.image_filter import ImageFilter
from scenarios.serial_sharing import SerialSharing
from scenarios.supervised import Supervised

provenance.skip(os.path.dirname(__file__))  # what a user sees of a run is the line that started it

__all__ = [
    "GAN",
    "AggregatedGradients",
    "DenoisingAutoencoder",
    "Distillation",
    "Ensemble",
    "Hook",
    "ImageFilter",
    "MeshPlan",
    "NonFiniteError",
    "Preflight",
    "Repetition",
    "Replay",
    "Result",
    "ResumeError",
    "Scenario",
    "SerialSharing",
    "Settings",
    "SnapshotEnsemble",
    "Stop",
    "Supervised",
    "TiedAutoencoder",
    "VariationalAutoencoder",
    "VectorQuantizedAutoencoder",
    "Verification",
    "aggregation",
    "ensemble",
    "evaluation",
    "events",
    "gan",
    "hooks",
    "plugins",
    "testing",
]
