"""Training scenarios: how models are trained, as objects that know nothing of the models."""

import os

from modulekit.core import provenance
from scenarios import evaluation, hooks
from scenarios.base import events
from scenarios.base.hooks import Hook, Stop
from scenarios.base.nonfinite import NonFiniteError
from scenarios.base.preflight import Preflight
from scenarios.base.repetition import Repetition
from scenarios.base.replaying import Replay
from scenarios.base.result import Result
from scenarios.base.scenario import Scenario
from scenarios.base.settings import Settings
from scenarios.base.verification import ResumeError, Verification
from scenarios.supervised import Supervised
from scenarios.tied_autoencoder import TiedAutoencoder

provenance.skip(os.path.dirname(__file__))  # what a user sees of a run is the line that started it

__all__ = [
    "Hook",
    "NonFiniteError",
    "Preflight",
    "Repetition",
    "Replay",
    "Result",
    "ResumeError",
    "Scenario",
    "Settings",
    "Stop",
    "Supervised",
    "TiedAutoencoder",
    "Verification",
    "evaluation",
    "events",
    "hooks",
]
