"""Gradient descent in its classical forms, and a wrapper for any optax transformation."""

import jax.numpy as jnp
import optax

from modulekit.core.arithmetic import value_of
from modulekit.core.variable import Variable
from modulekit.optimizers.transformed import Hyperparameter, Transformed, descent, scaled


class SGD(Transformed):
    """Stochastic gradient descent: `p <- p - learning_rate g`.

    Args:
      learning_rate: a number, or a scalar variable that may be assigned between steps.
      name: the module's name.

    Sources: Robbins and Monro, A stochastic approximation method, 1951; Sonnet 2, `snt.optimizers.SGD`.

    >>> w = Variable(1.0, name="w")
    >>> SGD(0.1).apply([jnp.array(2.0)], [w])
    >>> round(float(w), 6)
    0.8
    """

    _is_elementwise = True

    def __init__(self, learning_rate: Hyperparameter, name: str | None = None) -> None:
        super().__init__(name=name)
        self.learning_rate = learning_rate

    def _transformation(self) -> optax.GradientTransformation:
        return descent(self.learning_rate)


class Momentum(Transformed):
    """Gradient descent with momentum: `a <- momentum a + g`, `p <- p - learning_rate a`.

    With `use_nesterov`, `p <- p - learning_rate (momentum a + g)`.

    Args:
      learning_rate: a number or a scalar variable.
      momentum: how much of the accumulated gradient is kept, in [0, 1); a number or a scalar variable.
      use_nesterov: whether to look ahead by one step.
      name: the module's name.

    Sources: Polyak 1964; Sutskever et al. 2013 (Nesterov's form); Sonnet 2, `snt.optimizers.Momentum`.

    >>> w = Variable(1.0, name="w")
    >>> momentum = Momentum(0.1, 0.9)
    >>> momentum.apply([jnp.array(1.0)], [w]); momentum.apply([jnp.array(1.0)], [w])
    >>> round(float(w), 6)
    0.71
    """

    _slot_names = {"trace": ("accumulated_momentum", "accumulated_momentum")}
    _is_elementwise = True

    def __init__(
        self,
        learning_rate: Hyperparameter,
        momentum: Hyperparameter,
        use_nesterov: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.use_nesterov = use_nesterov
        self.accumulated_momentum: tuple[Variable, ...] = ()

    def _transformation(self) -> optax.GradientTransformation:
        return optax.chain(optax.trace(value_of(self.momentum), self.use_nesterov), descent(self.learning_rate))


class Adam(Transformed):
    """Adam: gradients divided by the root of their mean square, both bias-corrected.

    `m <- beta1 m + (1 - beta1) g`, `v <- beta2 v + (1 - beta2) g^2`,
    `p <- p - learning_rate (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)`.

    Args:
      learning_rate: a number or a scalar variable.
      beta1: the decay of the mean, in [0, 1).
      beta2: the decay of the mean square, in [0, 1).
      epsilon: added to the root.
      name: the module's name.

    Sources: Kingma and Ba, Adam: a method for stochastic optimization, 2015, algorithm 1; Sonnet 2, `snt.optimizers.Adam`.

    >>> w = Variable(1.0, name="w")
    >>> Adam(0.1).apply([jnp.array(5.0)], [w])
    >>> round(float(w), 4)
    0.9
    """

    _slot_names = {"mu": ("m", "m"), "nu": ("v", "v")}
    _is_elementwise = True
    _counter_names = {"count": "step"}

    def __init__(
        self,
        learning_rate: Hyperparameter = 0.001,
        beta1: Hyperparameter = 0.9,
        beta2: Hyperparameter = 0.999,
        epsilon: Hyperparameter = 1e-8,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.learning_rate = learning_rate
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.step = Variable(jnp.zeros([], jnp.int32), trainable=False, name="t")
        self.m: tuple[Variable, ...] = ()
        self.v: tuple[Variable, ...] = ()

    def _transformation(self) -> optax.GradientTransformation:
        moments = optax.scale_by_adam(value_of(self.beta1), value_of(self.beta2), value_of(self.epsilon))
        return optax.chain(moments, descent(self.learning_rate))


class RMSProp(Transformed):
    """RMSProp: gradients divided by the root of their decaying mean square, with momentum.

    `s <- decay s + (1 - decay) g^2`, `a <- momentum a + learning_rate g / sqrt(s + epsilon)`, `p <- p - a`; centered, the
    square of the gradients' decaying mean is subtracted from `s` under the root.

    Args:
      learning_rate: a number or a scalar variable.
      decay: of the mean square, in [0, 1).
      momentum: in [0, 1).
      epsilon: added under the root.
      centered: whether to divide by the standard deviation.
      name: the module's name.

    Sources: Tieleman and Hinton, lecture 6.5, 2012; the centered form is Graves 2013; Sonnet 2, `snt.optimizers.RMSProp`.

    >>> w = Variable(1.0, name="w")
    >>> RMSProp(0.1, decay=0.0).apply([jnp.array(5.0)], [w])
    >>> round(float(w), 6)
    0.9
    """

    def __init__(
        self,
        learning_rate: Hyperparameter,
        decay: Hyperparameter = 0.9,
        momentum: Hyperparameter = 0.0,
        epsilon: Hyperparameter = 1e-10,
        centered: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.learning_rate = learning_rate
        self.decay = decay
        self.momentum = momentum
        self.epsilon = epsilon
        self.centered = centered
        self.mom: tuple[Variable, ...] = ()
        self.ms: tuple[Variable, ...] = ()
        self.mg: tuple[Variable, ...] = ()

    _slot_names = {"trace": ("mom", "momentum"), "nu": ("ms", "rms"), "mu": ("mg", "mg")}
    _is_elementwise = True

    def _transformation(self) -> optax.GradientTransformation:
        by_root = optax.scale_by_stddev if self.centered else optax.scale_by_rms
        normalized = by_root(value_of(self.decay), value_of(self.epsilon), eps_in_sqrt=True)
        return optax.chain(
            normalized, scaled(self.learning_rate), optax.trace(value_of(self.momentum)), optax.scale(-1.0)
        )


class Optax(Transformed):
    """Any optax transformation, with its state in variables: `u, state <- update(g, state, p)`, `p <- p + u`.

    Args:
      transformation: what `optax.adamw(1e-3)` and its like return: it includes the learning rate and its sign.
      name: the module's name.

    Source: Optax, `optax.GradientTransformation` and `optax.apply_updates`.

    >>> w = Variable(1.0, name="w")
    >>> Optax(optax.adamw(0.1)).apply([jnp.array(5.0)], [w])
    >>> round(float(w), 4)
    0.9
    """

    def __init__(self, transformation: optax.GradientTransformation, name: str | None = None) -> None:
        super().__init__(name=name)
        self.transformation = transformation

    def _transformation(self) -> optax.GradientTransformation:
        return self.transformation
