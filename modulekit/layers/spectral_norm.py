"""`SpectralNorm`: a weight divided by its largest singular value."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from modulekit.core.arithmetic import ArrayLike, array_of
from modulekit.core.explain import summarize
from modulekit.core.module import Module
from modulekit.core.once import once
from modulekit.core.variable import Variable
from modulekit.initializers import Initializer, RandomNormal, Zeros
from modulekit.layers.inputs import location
from modulekit.layers.recurrent_inputs import check_positive


class SpectralNorm(Module):
    """`w / sigma`, where `sigma` estimates the largest singular value of `w`, by power iteration.

    With `w` as a matrix `[everything else, outputs]`, each step and the estimate are

        v = w u / |w u|,   u = w^T v / |w^T v|,   sigma = v^T w u

    In training, `u` is kept, so that one step for each call is enough while `w` changes slowly. The gradient goes through
    `w` in both places, and not through `u` and `v`. All of it is computed in float32 at least.

    Args:
      n_steps: the number of steps for each call.
      eps: the least that `w` is divided by.
      u_init: initializer of `u`; normal if None.
      name: the module's name.

    Attributes:
      u: `[outputs]`, not trainable, made on the first call.
      sigma: the last estimate made in training, a scalar, not trainable.

    Raises:
      ValueError: `n_steps` below 1.

    Source: Miyato et al., Spectral normalization for generative adversarial networks, 2018, algorithm 1.

    >>> import modulekit as mk
    >>> norm = mk.SpectralNorm(n_steps=20)
    >>> norm(jnp.diag(jnp.array([4.0, 1.0])), is_training=True).round(3).tolist()
    [[1.0, 0.0], [0.0, 0.25]]
    """

    def __init__(
        self, n_steps: int = 1, eps: float = 1e-4, u_init: Initializer | None = None, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        check_positive(n_steps=n_steps)
        self.n_steps = n_steps
        self.eps = eps
        self.u_init = u_init

    @once
    def _initialize(self, w: jax.Array) -> None:
        self.u = Variable((self.u_init or RandomNormal())([w.shape[-1]], w.dtype), trainable=False, name="u")
        self.sigma = Variable(Zeros()([], w.dtype), trainable=False, name="sigma")

    def __call__(self, w: ArrayLike, is_training: bool) -> Float[Array, "*window inputs outputs"]:
        """Returns `w / sigma`.

        Args:
          w: a weight, `[inputs, outputs]` or `[*window, inputs, outputs]`, or the variable that holds it.
          is_training: whether to keep `u` and `sigma` for the next call.

        Returns:
          An array of the shape and dtype of `w`.

        Raises:
          ValueError: a rank below 2, another number of outputs than on the first call, or an integer dtype.
        """
        w = array_of(w)
        check_weight(self, w, self.u.shape[0] if hasattr(self, "u") else None)
        wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))
        self._initialize(wide)
        matrix = wide.reshape(-1, w.shape[-1])
        u, sigma = largest_singular_value(matrix, self.u.value, self.n_steps)
        if is_training:
            self.u.assign(u.astype(self.u.dtype))
            self.sigma.assign(lax.stop_gradient(sigma).astype(self.u.dtype))
        return (wide / jnp.maximum(sigma, self.eps)).astype(w.dtype)


def largest_singular_value(
    matrix: Float[Array, "rows columns"], u: Float[Array, "columns"], n_steps: int
) -> tuple[Float[Array, "columns"], Float[Array, ""]]:
    """Returns the next `u` and `sigma = v^T matrix u`, after steps of power iteration from `u`.

    A vector that a step would turn into zero stays as it is. The gradient of `sigma` is `v u^T`.

    Args:
      matrix: `[rows, columns]`.
      u: `[columns]`.
      n_steps: the number of steps, 1 or more.
    """
    fixed, v = lax.stop_gradient(matrix), jnp.zeros(matrix.shape[0], matrix.dtype)
    for _ in range(n_steps):
        v = _unit(fixed @ u, v)
        u = _unit(v @ fixed, u)
    return u, v @ matrix @ u


def _unit(vector: jax.Array, otherwise: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(vector)
    return jnp.where(length > 0, vector / jnp.where(length > 0, length, 1), otherwise)


def check_weight(module: Module, w: jax.Array, output_size: int | None) -> None:
    """Raises `ValueError` unless `w` is `[..., inputs, outputs]` of a floating-point dtype.

    Args:
      module: the module, for the message.
      w: what came.
      output_size: the number of outputs in the first call; None before it.
    """
    if w.ndim < 2 or not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(
            f"{location(module)} expects a weight [..., inputs, outputs] of a floating-point dtype, got {summarize(w)}: "
            "normalize weights only, and no biases"
        )
    if output_size is not None and w.shape[-1] != output_size:
        raise ValueError(
            f"{location(module)} expects a weight with {output_size} outputs, got {summarize(w)}: use another module for "
            "another weight"
        )
