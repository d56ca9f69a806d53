"""Networks made of layers."""

from modulekit.nets import resnet
from modulekit.nets.cifar10_convnet import Cifar10ConvNet
from modulekit.nets.mlp import MLP
from modulekit.nets.resnet import ResNet, ResNet50
from modulekit.nets.transformer import Transformer
from modulekit.nets.transformer_block import TransformerBlock
from modulekit.nets.vector_quantizer import VectorQuantizer, VectorQuantizerEMA

__all__ = [
    "MLP",
    "Cifar10ConvNet",
    "ResNet",
    "ResNet50",
    "Transformer",
    "TransformerBlock",
    "VectorQuantizer",
    "VectorQuantizerEMA",
    "resnet",
]
