"""PyTorch, not compiled: modules of `torch.nn`, and `torch.optim.Adam`; on the CPU."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.benchmarks.contender import Stepwise
from tests.benchmarks.workloads import batchnorm_convnet, convnet, fields, lstm, transformer
from tests.benchmarks.workloads.workload import LEARNING_RATE, Params, Workload


class MLP(nn.Sequential):
    """See `workloads.mlp`; a network here changes hand-written params to its own trained parameters by `own`."""

    def __init__(self, workload: Workload) -> None:
        pairs = zip(workload.sizes, workload.sizes[1:], strict=False)
        layers = [layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())]
        super().__init__(*layers[:-1])

    @staticmethod
    def own(params: Params) -> list[jax.Array]:
        """Returns the arrays of `params` in the order of the network's parameters."""
        return [array for index in range(len(params)) for array in linear_arrays(params[f"linear_{index}"])]


class Fields(nn.Module):
    """See `workloads.fields`."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        shape = (fields.FEATURES, fields.CLASSES)
        self.fields = nn.ParameterList([nn.Parameter(torch.randn(shape)) for _ in range(workload.sizes[0])])

    @staticmethod
    def own(params: Params) -> list[jax.Array]:
        """Returns the arrays of `params` in the order of the network's parameters."""
        return [params[f"field_{index}"] for index in range(len(params))]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        return x @ torch.cat(list(self.fields))


class ConvNet(nn.Module):
    """See `workloads.convnet`; the channels come first, as PyTorch wants them."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        size, pairs = convnet.KERNEL, zip((1, *convnet.CHANNELS), convnet.CHANNELS, strict=False)
        self.convs = nn.ModuleList([nn.Conv2d(*pair, size, padding=size // 2) for pair in pairs])
        self.linear = nn.Linear(convnet.FEATURES, convnet.CLASSES)

    @staticmethod
    def own(params: Params) -> list[jax.Array]:
        """Returns the arrays of `params` in the order of the parameters; features are flattened with channels first."""
        convs = [params["conv_0"], params["conv_1"]]
        arrays = [array for conv in convs for array in (kernel(conv["w"]), conv["b"])]
        w = params["linear"]["w"].reshape(-1, convnet.CHANNELS[-1], convnet.CLASSES).transpose(2, 1, 0)
        return [*arrays, w.reshape(convnet.CLASSES, -1), params["linear"]["b"]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        x = x.permute(0, 3, 1, 2)
        for conv in self.convs:
            x = functional.max_pool2d(functional.relu(conv(x)), 2)
        return self.linear(x.flatten(1))


class BatchNormConvNet(nn.Module):
    """See `workloads.batchnorm_convnet`; the moving statistics follow PyTorch's own rule."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        size, channels = batchnorm_convnet.KERNEL, batchnorm_convnet.CHANNELS
        pairs = zip((1, *channels), channels, strict=False)
        self.convs = nn.ModuleList([nn.Conv2d(*pair, size, padding=size // 2, bias=False) for pair in pairs])
        self.norms = nn.ModuleList(
            [nn.BatchNorm2d(count, batchnorm_convnet.EPS, 1 - batchnorm_convnet.DECAY) for count in channels]
        )
        self.linear = nn.Linear(channels[-1], convnet.CLASSES)

    @staticmethod
    def own(params: Params) -> list[jax.Array]:
        """Returns the arrays of `params` in the order of the network's parameters."""
        convs = [kernel(params[f"conv_{index}"]["w"]) for index in range(2)]
        norms = [array for index in range(2) for array in norm_arrays(params[f"norm_{index}"])]
        return [*convs, *norms, *linear_arrays(params["linear"])]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        x = x.permute(0, 3, 1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.avg_pool2d(functional.relu(norm(conv(x))), 2)
        return self.linear(x.mean((2, 3)))


class LSTM(nn.Module):
    """See `workloads.lstm`; of PyTorch's two biases, which add up, one is trained and the other stays zero."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.lstm = nn.LSTM(lstm.INPUTS, lstm.HIDDEN, batch_first=True)
        nn.init.zeros_(self.lstm.bias_hh_l0).requires_grad_(False)
        self.linear = nn.Linear(lstm.HIDDEN, lstm.CLASSES)

    @staticmethod
    def own(params: Params) -> list[jax.Array]:
        """Returns the arrays of `params` in the order of the network's parameters."""
        gates = params["lstm"]
        return [gates["w_i"].T, gates["w_h"].T, gates["b"], *linear_arrays(params["linear"])]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        outputs, _ = self.lstm(x)
        return self.linear(outputs[:, -1])


class Transformer(nn.Module):
    """See `workloads.transformer`; PyTorch calls a decoder that attends to nothing else an encoder."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        width, length = transformer.WIDTH, transformer.LENGTH
        gelu: Any = functools.partial(functional.gelu, approximate="tanh")
        self.embed = nn.Embedding(transformer.VOCABULARY, width)
        self.positions = nn.Parameter(torch.randn(length, width))
        self.blocks = nn.ModuleList(
            [
                nn.TransformerEncoderLayer(
                    width, transformer.HEADS, 4 * width, 0.0, gelu, batch_first=True, norm_first=True
                )
                for _ in range(transformer.LAYERS)
            ]
        )
        self.final_norm = nn.LayerNorm(width)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    @staticmethod
    def own(params: Params) -> list[jax.Array]:
        """Returns the arrays of `params` in the order of the network's parameters, of which its own comes first."""
        blocks = [array for block in params["blocks"] for array in block_arrays(block)]
        return [params["positions"], params["embed"], *blocks, *norm_arrays(params["final_norm"])]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        x = self.embed(tokens) + self.positions
        for block in self.blocks:
            x = block(x, self.mask, is_causal=True)
        return functional.linear(self.final_norm(x), self.embed.weight)


def kernel(w: jax.Array) -> jax.Array:
    """Returns the weight of a convolution with its channels first."""
    return w.transpose(3, 2, 0, 1)


def norm_arrays(norm: Params) -> list[jax.Array]:
    """Returns the arrays of a normalization."""
    return [norm["scale"], norm["offset"]]


def linear_arrays(layer: Params) -> list[jax.Array]:
    """Returns the arrays of a linear layer."""
    return [layer["w"].T, layer["b"]]


def block_arrays(block: Params) -> list[Any]:
    """Returns the arrays of a block, which projects to queries, keys and values by one weight."""
    projections = [linear_arrays(block["attention"][name]) for name in transformer.PROJECTIONS]
    joint = [np.concatenate(arrays) for arrays in zip(*projections[:3], strict=True)]
    layers = [*linear_arrays(block["hidden"]), *linear_arrays(block["linear"])]
    norms = [*norm_arrays(block["attention_norm"]), *norm_arrays(block["feed_forward_norm"])]
    return [*joint, *projections[3], *layers, *norms]


NETWORKS: dict[str, Any] = {
    "mlp": MLP,
    "fields": Fields,
    "convnet": ConvNet,
    "batchnorm_convnet": BatchNormConvNet,
    "lstm": LSTM,
    "transformer": Transformer,
}


def make_network(workload: Workload, params: Params | None) -> nn.Module:
    """Returns the network, with copies of these weights; with its own for None."""
    network: nn.Module = NETWORKS[workload.kind](workload)
    if params is not None:
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        with torch.no_grad():
            for parameter, value in zip(trained, NETWORKS[workload.kind].own(params), strict=True):
                parameter.copy_(torch.tensor(np.array(value)))
    return network


def make_step(workload: Workload, params: Params | None) -> Callable[[Any, Any], torch.Tensor]:
    """Returns a step that keeps its state."""
    network = make_network(workload, params)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, eps=1e-8)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(x).flatten(0, -2), y.flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def place(array: np.ndarray) -> torch.Tensor:
    """Returns a tensor; PyTorch wants labels and tokens as integers of 64 bits."""
    return torch.tensor(array, dtype=torch.int64 if np.issubdtype(array.dtype, np.integer) else None)


CONTENDER = Stepwise("torch", "torch", make_step, place=place)
