"""Recurrent networks in plain NumPy, double precision, one sequence and one unit at a time: what the library is held to."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
State = tuple[np.ndarray, ...]
Step = Callable[[np.ndarray, State, Arrays], State]


def sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


def vanilla_step(x: np.ndarray, state: State, w: Arrays) -> State:
    """`h' = tanh(x w_i + h w_h + b)`, unit by unit."""
    (h,) = state
    new = np.zeros_like(h)
    for unit in range(len(h)):
        new[unit] = np.tanh(x @ w["w_i"][:, unit] + h @ w["w_h"][:, unit] + w["b"][unit])
    return (new,)


def lstm_step(x: np.ndarray, state: State, w: Arrays) -> State:
    """An LSTM, unit by unit; a weight named `projection` makes the hidden state smaller."""
    h, c = state
    units = len(c)
    new_h, new_c = np.zeros_like(c), np.zeros_like(c)
    for unit in range(units):
        i, f, g, o = (
            x @ w["w_i"][:, part * units + unit] + h @ w["w_h"][:, part * units + unit] + w["b"][part * units + unit]
            for part in range(4)
        )
        new_c[unit] = sigmoid(f) * c[unit] + sigmoid(i) * np.tanh(g)
        new_h[unit] = sigmoid(o) * np.tanh(new_c[unit])
    return (new_h @ w["projection"] if "projection" in w else new_h), new_c


def gru_step(x: np.ndarray, state: State, w: Arrays) -> State:
    """A GRU, unit by unit."""
    (h,) = state
    units = len(h)

    def gate(part: int, unit: int, hidden: np.ndarray) -> Any:
        column = part * units + unit
        return x @ w["w_i"][:, column] + hidden @ w["w_h"][:, column] + w["b"][column]

    z = np.array([sigmoid(gate(0, unit, h)) for unit in range(units)])
    r = np.array([sigmoid(gate(1, unit, h)) for unit in range(units)])
    a = np.array([np.tanh(gate(2, unit, r * h)) for unit in range(units)])
    return ((1 - z) * h + z * a,)


def convolved(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A channels-last image `[..., in]` with a kernel `[..., in, out]`, element by element, of the image's size."""
    sizes, extents = kernel.shape[:-2], image.shape[:-1]
    outputs = np.zeros((*extents, kernel.shape[-1]))
    for place in itertools.product(*map(range, extents)):
        for offset in itertools.product(*map(range, sizes)):
            seen = tuple(p + o - (size - 1) // 2 for p, o, size in zip(place, offset, sizes, strict=True))
            if all(0 <= s < extent for s, extent in zip(seen, extents, strict=True)):
                outputs[place] += image[seen] @ kernel[offset]
    return outputs


def conv_lstm_step(x: np.ndarray, state: State, w: Arrays) -> State:
    """An LSTM with convolutions, channels last."""
    h, c = state
    gates = convolved(x, w["w_i"]) + convolved(h, w["w_h"]) + w["b"]
    channels = c.shape[-1]
    i, f, g, o = (gates[..., part * channels : (part + 1) * channels] for part in range(4))
    new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(new_c), new_c


def unrolled(
    step: Step, sequence: np.ndarray, state: State, w: Arrays, lengths: Sequence[int] | None = None
) -> tuple[np.ndarray, State]:
    """Runs each sequence of a batch on its own, up to its length.

    Args:
      step: of one sequence; the first part of its state is its output.
      sequence: `[time, batch, ...]`.
      state: arrays `[batch, ...]`.
      w: the weights.
      lengths: of the sequences; from there on the last output and the state are repeated, outputs of zeros for length 0.

    Returns:
      The outputs `[time, batch, ...]` and the final state.
    """
    steps, batch = sequence.shape[:2]
    lengths = [steps] * batch if lengths is None else lengths
    outputs: list[Any] = []
    finals: list[State] = []
    for index in range(batch):
        own: State = tuple(part[index] for part in state)
        output, rows = np.zeros_like(own[0]), []
        for time in range(steps):
            if time < lengths[index]:
                own = step(sequence[time, index], own, w)
                output = own[0]
            rows.append(output)
        outputs.append(rows)
        finals.append(own)
    return np.moveaxis(np.array(outputs), 0, 1), tuple(np.array(parts) for parts in zip(*finals, strict=True))


def differences(loss: Callable[[Arrays], float], arrays: Arrays, epsilon: float = 1e-6) -> Arrays:
    """Returns the gradient of a loss by central differences, element by element."""
    gradients = {name: np.zeros_like(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        for place in itertools.product(*map(range, array.shape)):
            values = []
            for sign in (1, -1):
                moved = {key: value.copy() for key, value in arrays.items()}
                moved[name][place] += sign * epsilon
                values.append(loss(moved))
            gradients[name][place] = (values[0] - values[1]) / (2 * epsilon)
    return gradients


def random_arrays(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Arrays:
    """Returns arrays of normal numbers."""
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape) for name, shape in shapes.items()}
