"""GAN: a generator and a discriminator trained against each other, their losses, and what the generated examples are worth.

`GAN` is the scenario. Losses and penalties are functions of what the discriminator returns, or of the discriminator itself;
`LOSSES` names the pairs of losses that belong together. The measures compare features of real and of generated examples,
and may be used without any scenario.
"""

from scenarios.gan.frechet import frechet_distance
from scenarios.gan.losses import (
    LOSSES,
    LossPair,
    hinge_d,
    least_squares_d,
    least_squares_g,
    minimax_d,
    minimax_g,
    non_saturating_g,
    relativistic_d,
    relativistic_g,
    wasserstein_d,
    wasserstein_g,
)
from scenarios.gan.manifolds import PrecisionRecall, precision_and_recall
from scenarios.gan.penalties import gradient_penalty, r1_penalty
from scenarios.gan.ring import ModeCoverage, RingOfGaussians
from scenarios.gan.scenario import GAN

__all__ = [
    "GAN",
    "LOSSES",
    "LossPair",
    "ModeCoverage",
    "PrecisionRecall",
    "RingOfGaussians",
    "frechet_distance",
    "gradient_penalty",
    "hinge_d",
    "least_squares_d",
    "least_squares_g",
    "minimax_d",
    "minimax_g",
    "non_saturating_g",
    "precision_and_recall",
    "r1_penalty",
    "relativistic_d",
    "relativistic_g",
    "wasserstein_d",
    "wasserstein_g",
]
