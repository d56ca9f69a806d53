"""Training scenarios: how models are trained, as objects that know nothing of the models."""

from scenarios.base import events
from scenarios.base.hooks import Hook, Stop
from scenarios.base.nonfinite import NonFiniteError
from scenarios.base.result import Result
from scenarios.base.scenario import Scenario
from scenarios.base.settings import Settings
from scenarios.supervised import Supervised
from scenarios.tied_autoencoder import TiedAutoencoder

__all__ = [
    "Hook",
    "NonFiniteError",
    "Result",
    "Scenario",
    "Settings",
    "Stop",
    "Supervised",
    "TiedAutoencoder",
    "events",
]
