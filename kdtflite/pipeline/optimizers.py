"""The optimizer that a recipe names, with its learning rate over the whole training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.pipeline.recipe import TrainingRecipe

__all__ = ["NesterovSGD", "make_optimizer", "make_schedule"]

_MOMENTUM = 0.9
# The rate at the first step and at the last, as fractions of the peak. One-cycle as in Smith &
# Topin, arXiv 1708.07120, without the cycle of the momentum.
_ENDS = {"cosine": (0.01, 0.01), "one_cycle": (1 / 25, 1 / 250_000), "constant": (0.01, 1.0)}


def make_optimizer(
    recipe: TrainingRecipe, steps: int, variables: Sequence[tf.Variable]
) -> keras.optimizers.Optimizer:
    """Returns the recipe's optimizer with its learning rate over the whole training.

    Args:
        recipe: The recipe of the training.
        steps: Steps per epoch.
        variables: The variables to train; biases and normalizations among them do not decay.
    """
    options: dict[str, Any] = {
        "learning_rate": make_schedule(recipe, steps),
        "global_clipnorm": recipe.clip_norm,
        "use_ema": recipe.ema is not None,
        "ema_momentum": recipe.ema or 0.99,
    }
    if recipe.optimizer == "sgd":
        return NesterovSGD(l2=recipe.weight_decay, **options)
    # With weight_decay Keras' Adam is AdamW: the decay is decoupled from the gradient.
    optimizer = keras.optimizers.Adam(weight_decay=recipe.weight_decay or None, **options)
    vectors = [variable for variable in variables if variable.shape.rank < 2]
    optimizer.exclude_from_weight_decay(var_list=vectors)
    return optimizer


def make_schedule(
    recipe: TrainingRecipe, steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate by step: a linear rise, then what `schedule` says.

    Args:
        recipe: The recipe of the training.
        steps: Steps per epoch.
    """
    first, last = _ENDS[recipe.schedule]
    rise = min(int(recipe.rise * steps), recipe.epochs * steps - 1)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=first * recipe.learning_rate if rise else recipe.learning_rate,
        decay_steps=recipe.epochs * steps - rise,
        alpha=last,
        warmup_target=recipe.learning_rate if rise else None,
        warmup_steps=rise,
    )


class NesterovSGD(keras.optimizers.SGD):
    """SGD with Nesterov momentum of 0.9 and L2 regularization of kernels.

        g = ∇L + l2 · w,   v ← 0.9 v - lr · g,   w ← w + 0.9 v - lr · g

    (Sutskever et al., 2013.) The regularization is part of the gradient and so of the momentum,
    as if the loss had l2 / 2 · ‖w‖² more. Keras' own `weight_decay` would be neither.

    Args:
        l2: Factor of the kernels, which are the variables with two axes or more.
        **options: Options of `keras.optimizers.SGD`.
    """

    def __init__(self, *, l2: float = 0.0, **options: Any) -> None:
        super().__init__(**{"momentum": _MOMENTUM, "nesterov": True, "name": "SGD", **options})
        self.l2 = l2

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        """Updates one variable."""
        if self.l2 and variable.shape.rank >= 2:
            gradient = tf.convert_to_tensor(gradient) + self.l2 * variable
        super().update_step(gradient, variable)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "l2": self.l2}
