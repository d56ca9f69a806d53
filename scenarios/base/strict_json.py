"""Numbers in JSON that any reader takes: strict JSON knows no NaN and no infinity."""

import math
from typing import Any


def in_json(content: Any) -> Any:
    """Returns content as strict JSON has it: lists for arrays, null for a number that is not finite.

    >>> import numpy as np
    >>> in_json({"a": np.array([1.0, np.nan]), "b": np.int32(3)})
    {'a': [1.0, None], 'b': 3}
    """
    if isinstance(content, dict):
        return {str(key): in_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [in_json(value) for value in content]
    if hasattr(content, "tolist"):
        return in_json(content.tolist())
    return None if isinstance(content, float) and not math.isfinite(content) else content
