"""Networks made of layers."""

from modulekit.nets.mlp import MLP

__all__ = ["MLP"]
