"""Autoencoders: scenarios that train a model to reproduce its input through something narrower.

Each takes an encoder and a decoder that know nothing of each other, and of the scenario. What they share are functions:
`likelihood` says what a loss means, `images` draws and measures reconstructions, `draws` makes the random numbers of
examples, `posterior` and `codebook` hold the arithmetic of the codes.
"""

from scenarios.autoencoders.denoising import DenoisingAutoencoder
from scenarios.autoencoders.tied import TiedAutoencoder
from scenarios.autoencoders.variational import VariationalAutoencoder
from scenarios.autoencoders.vector_quantized import VectorQuantizedAutoencoder

__all__ = ["DenoisingAutoencoder", "TiedAutoencoder", "VariationalAutoencoder", "VectorQuantizedAutoencoder"]
