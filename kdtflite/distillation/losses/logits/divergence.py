"""Divergences between distributions, in log space and float64."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["cross_entropy", "kl", "log_probabilities"]


def log_probabilities(logits: Any, temperature: Any = 1.0) -> tf.Tensor:
    """Returns log softmax(logits / temperature) over the last axis, float64."""
    return tf.nn.log_softmax(tf.cast(logits, tf.float64) / temperature)


@tf.custom_gradient
def kl(log_p: tf.Tensor, log_q: tf.Tensor) -> Any:
    """Returns KL(p ‖ q) = Σ p ln(p / q) over the last axis.

    Args:
        log_p: Log-probabilities, float64; -inf where p rules a class out.
        log_q: The same of q. Where q alone rules a class out, the divergence is infinite.
    """
    p, q = tf.exp(log_p), tf.exp(log_q)
    # A class that p rules out adds only its probability in q, which may be 0 too.
    possible = log_p > -float("inf")
    d = tf.where(possible, log_q - log_p, tf.zeros_like(log_p))
    # Both distributions sum to 1, so KL = Σ p (e^d - 1 - d). None of these terms is negative:
    # nothing cancels when the two are nearly the same, as in Σ p (-d).
    terms = tf.where(
        possible & (tf.abs(d) < 0.5),
        p * (tf.math.expm1(d) - d),
        q - p - tf.math.multiply_no_nan(d, p),
    )

    # In closed form: autodiff would take NaN from the branch that is not taken, and be slower.
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        upstream = upstream[..., tf.newaxis]
        return -upstream * tf.math.multiply_no_nan(d, p), upstream * (q - p)

    return tf.reduce_sum(terms, axis=-1), gradient


def cross_entropy(p: tf.Tensor, log_q: tf.Tensor) -> tf.Tensor:
    """Returns -Σ p ln q over the last axis; a class that p rules out adds nothing."""
    return -tf.reduce_sum(tf.math.multiply_no_nan(log_q, p), axis=-1)
