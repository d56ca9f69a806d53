"""`Identity`: a layer that does nothing."""

from typing import Any, TypeVar

from modulekit.core.module import Module, allow_empty_variables

T = TypeVar("T")


@allow_empty_variables
class Identity(Module):
    """`y = x`: stands where a layer is left out, and takes whatever that layer would take.

    Args:
      name: the module's name.

    Source: Equinox, `eqx.nn.Identity`. Not in Sonnet.

    >>> Identity()(3, is_training=True)
    3
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)

    def __call__(self, inputs: T, *args: Any, **kwargs: Any) -> T:
        """Returns `inputs` as they are; `args` and `kwargs` have no effect."""
        return inputs
