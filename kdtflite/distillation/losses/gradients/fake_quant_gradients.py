"""Second-order gradients of fake quantization, which TensorFlow leaves out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops

__all__ = ["register_fake_quant_gradients"]


@functools.cache
def register_fake_quant_gradients() -> None:
    """Makes fake quantization differentiable more than once, in this process.

    The gradient of a fake-quantization op passes the upstream gradient where the value is inside
    the range, and blocks it elsewhere (the straight-through estimator). It is linear in the
    upstream gradient, so its own gradient is the same mask again. The mask is constant almost
    everywhere: nothing flows to the values or the range. The gradient of the range's gradient is
    dropped; only a loss on that would notice.

    TensorFlow computes the gradient with an op that it declares not differentiable. A tape silently
    takes the gradient of that op as None, so a loss on input gradients would not train a
    quantization-aware student at all. First-order gradients stay bit-identical: they come from the
    same op.
    """
    for name, first_order in _FIRST_ORDER.items():
        # RegisterGradient refuses a name that has a gradient. One for "...Gradient" itself would be
        # called without inputs, since tapes do not keep those of ops declared not differentiable.
        del ops.gradient_registry._registry[name]
        tf.RegisterGradient(name)(_make_gradient(first_order))


def _make_gradient(first_order: Callable[..., Any]) -> Callable[..., Any]:
    def gradient(op: Any, upstream: tf.Tensor) -> Any:
        options = {name: op.get_attr(name) for name in ("num_bits", "narrow_range")}
        values_and_range = op.inputs

        @tf.custom_gradient
        def mask(upstream: tf.Tensor) -> Any:
            def second_order(by_values: tf.Tensor, *by_range: tf.Tensor) -> tf.Tensor:
                del by_range
                return mask(by_values)[0]

            return first_order(upstream, *values_and_range, **options), second_order

        return mask(upstream)

    return gradient


_FIRST_ORDER: dict[str, Callable[..., Any]] = {
    "FakeQuantWithMinMaxVars": tf.quantization.fake_quant_with_min_max_vars_gradient,
    "FakeQuantWithMinMaxVarsPerChannel": (
        tf.quantization.fake_quant_with_min_max_vars_per_channel_gradient
    ),
}
