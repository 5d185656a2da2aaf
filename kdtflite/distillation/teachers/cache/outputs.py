"""The outputs of a teacher for a batch, as a cache stores them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.teachers.base import Teacher
from kdtflite.distillation.teachers.cache.views import Views
from kdtflite.errors import DataError, ShapeMismatchError

__all__ = ["TeacherOutputs"]


class TeacherOutputs:
    """Runs a teacher on views of samples, and refuses outputs that cannot be stored.

    Args:
        teacher: The teacher; its taps are set here.
        layers: Paths of the layers to store.
        views: How the samples are augmented.
        dtype: Dtype of the stored outputs.
    """

    def __init__(self, teacher: Teacher, layers: list[str], views: Views, dtype: np.dtype) -> None:
        self.teacher = teacher
        self.layers = layers
        self.views = views
        self.dtype = dtype
        teacher.tap(layers)
        self._views = tf.function(views, reduce_retracing=True, autograph=False)
        self._observe = tf.function(self._compute, reduce_retracing=True)
        strategy = tf.distribute.get_strategy()
        # Several workers each work alone: a fast one must not wait for a collective.
        alone = strategy.cluster_resolver is None or not strategy.cluster_resolver.task_type
        self._strategy = strategy if alone and strategy.num_replicas_in_sync > 1 else None

    def make_inputs(self, x: Any, first: int, view: int) -> Any:
        """Returns the student's inputs in `view` for samples from row `first` on."""
        rows = tf.range(first, first + len(tf.nest.flatten(x)[0]), dtype=tf.int64)
        return self._views(x, rows, tf.constant(view, tf.int64))

    def check_inputs(self, x: Any) -> None:
        """Shows the teacher its inputs, as `Distiller` does.

        Teachers other than Keras models learn their output shape and the order of inputs from it.
        """
        if hasattr(self.teacher, "model"):
            return
        named = isinstance(x, dict)
        inputs = tf.nest.map_structure(
            lambda t, name: keras.Input(t.shape[1:], dtype=t.dtype, name=name),
            x,
            {name: name for name in x} if named else tf.nest.map_structure(lambda _: None, x),
        )
        self.teacher.check_inputs(keras.Model(inputs, inputs))

    def __call__(self, x: Any, first: int, view: int) -> dict[str, np.ndarray]:
        """Returns the outputs by name ("logits", "features-0", ...), in the dtype of the cache.

        Args:
            x: The student's inputs.
            first: Row of the first sample, for messages.
            view: The view, for messages.

        Raises:
            DataError: An output is NaN, infinite, or too large for the dtype.
        """
        return {
            name: self._convert(name, tensor, first, view) for name, tensor in self._run(x).items()
        }

    def check_shapes(
        self, seen: dict[str, np.ndarray], shapes: dict[str, list[int]], first: int
    ) -> None:
        """Raises ShapeMismatchError unless every sample's outputs have the shapes of the first."""
        for name, array in seen.items():
            if list(array.shape[1:]) != shapes[name]:
                raise ShapeMismatchError(
                    f"Expected the teacher's {self._describe(name)} of shape {tuple(shapes[name])} "
                    f"for every sample. Received: {array.shape[1:]} from sample {first} on. Pad "
                    "the samples to one length."
                )

    def _run(self, x: Any) -> dict[str, np.ndarray]:
        count = len(tf.nest.flatten(x)[0])
        replicas = 1 if self._strategy is None else self._strategy.num_replicas_in_sync
        if self._strategy is None or count < replicas:
            return {name: tensor.numpy() for name, tensor in self._observe(x).items()}
        bounds = np.linspace(0, count, replicas + 1).astype(int)
        shares = self._strategy.experimental_distribute_values_from_function(
            lambda context: tf.nest.map_structure(
                lambda t: t[slice(*bounds[context.replica_id_in_sync_group :][:2])], x
            )
        )
        results = self._strategy.run(self._observe, args=(shares,))
        return {
            name: np.concatenate(
                [part.numpy() for part in self._strategy.experimental_local_results(value)]
            )
            for name, value in results.items()
        }

    def _compute(self, x: Any) -> dict[str, tf.Tensor]:
        seen = self.teacher.observe(x)
        features = {f"features-{i}": seen.features[p] for i, p in enumerate(self.layers)}
        return {
            name: tf.cast(tensor, tf.float32)
            for name, tensor in {"logits": seen.logits, **features}.items()
        }

    def _convert(self, name: str, array: np.ndarray, first: int, view: int) -> np.ndarray:
        def locate(bad: np.ndarray) -> str:
            sample = first + int(bad.reshape(len(bad), -1).any(axis=1).argmax())
            return f"sample {sample}" + (f" in view {view}" if self.views.views > 1 else "")

        what = f"The {self._describe(name)} of the teacher {self.teacher.name!r}"
        if not (finite := np.isfinite(array)).all():
            raise DataError(
                f"{what} hold NaN or infinity, first for {locate(~finite)}. Expected finite "
                "numbers. Check that sample, and the teacher's outputs for it."
            )
        largest = float(np.finfo(self.dtype).max)
        if array.size and np.abs(array).max() > largest:
            beyond = np.abs(array) > largest
            raise DataError(
                f"{what} reach {np.abs(array).max():.3g}, first for {locate(beyond)}; {self.dtype} "
                f'only reaches {largest:.5g}. Pass dtype="float32".'
            )
        return array.astype(self.dtype)

    def _describe(self, name: str) -> str:
        if name == "logits":
            return "logits"
        return f"outputs of layer {self.layers[int(name.rpartition('-')[2])]!r}"
