"""How a codebook is used: which codes are chosen at all, and how evenly."""

from typing import Any

import numpy as np
import numpy.typing as npt


def usage(counts: npt.ArrayLike) -> dict[str, float]:
    """Returns what is to be said about how often each code was chosen.

    Args:
      counts: `[codes]`.

    Returns:
      `used_codes`, how many were chosen; `used_share`, their share; `perplexity = exp(-sum_k p_k log p_k)`, the number
      of codes that would be as uneven if all were chosen alike, where `p` are the shares of the choices.

    >>> usage([2, 2, 0, 0])
    {'used_codes': 2.0, 'used_share': 0.5, 'perplexity': 2.0}
    """
    array: npt.NDArray[Any] = np.asarray(counts, np.float64)
    shares = array[array > 0] / array.sum()
    used = float(len(shares))
    return {
        "used_codes": used,
        "used_share": used / len(array),
        "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
    }
