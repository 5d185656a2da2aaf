"""Short runs of a Distiller's student that leave no trace in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.auto import Auto, Choice, Score
from kdtflite.distillation.candidates import Candidate
from kdtflite.distillation.losses.logits.target_classes import decisions, labelled
from kdtflite.distillation.outputs import as_classes, to_logits
from kdtflite.errors import ConfigurationError
from kdtflite.progress import say

if TYPE_CHECKING:
    from kdtflite.distillation.distiller import Distiller

__all__ = ["Trials", "choose_on"]

_SEED = 20_160_207


class Trials:
    """Trains a Distiller's student by one candidate after another, each from the same weights.

    Use it as a context: at its end the student's weights, ranges and statistics are what they
    were. The compiled optimizer is never touched; runs use copies of it, whose schedule of the
    learning rate is compressed into the run, as are moving averages: of the weights, and of batch
    normalization, which would else be validated with statistics that it has hardly begun to learn.

    Args:
        distiller: Compiled. Its own losses do not matter.
        batches: Returns the first so many training batches, the same ones at every call.
        validation_data: As `fit` takes it.
        steps: Steps of the whole training, which its schedule of the learning rate is made for.
        class_weight: As `fit` takes it.
        validation_batch_size: As `fit` takes it.

    Raises:
        ConfigurationError: A legacy optimizer, of which no copy can be made to go faster.
    """

    def __init__(
        self,
        distiller: Distiller,
        batches: Callable[[int], Any],
        validation_data: Any,
        *,
        steps: int,
        class_weight: Any = None,
        validation_batch_size: int | None = None,
    ) -> None:
        optimizer = _inner(distiller.optimizer)
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise ConfigurationError(
                'losses="auto" needs an optimizer of tf_keras.optimizers. Received: '
                f"{type(optimizer).__module__}.{type(optimizer).__name__}."
            )
        self.distiller = distiller
        self.batches = batches
        self.validation_data = validation_data
        self.steps = steps
        self.class_weight = class_weight
        self.validation_batch_size = validation_batch_size
        self._runs: dict[str, _Run] = {}
        self._weights = distiller.student.get_weights()
        self._norms = [
            (layer, layer.momentum, tf.Variable(layer.momentum, trainable=False))
            for layer in distiller.student._flatten_layers()
            if hasattr(layer, "moving_mean") and isinstance(layer.momentum, float)
        ]

    @property
    def teacher(self) -> str:
        """The teacher's fingerprint: with another one the scores are others."""
        teacher = self.distiller._teacher
        return "" if teacher is None else teacher.fingerprint()

    def __enter__(self) -> Trials:
        for layer, _, momentum in self._norms:
            # Past Keras, which would count the variable among the student's weights.
            object.__setattr__(layer, "momentum", momentum)
        return self

    def __exit__(self, *exception: object) -> None:
        for layer, own, _ in self._norms:
            object.__setattr__(layer, "momentum", own)
        self.distiller.student.set_weights(self._weights)

    def __call__(self, candidate: Candidate, steps: int) -> Score:
        """Returns what the student scores after `steps` of training by `candidate`."""
        self.distiller.student.set_weights(self._weights)
        for _, own, momentum in self._norms:
            momentum.assign(own ** (self.steps / steps))
        # Kept for the candidate's longer runs: tracing a step costs more than running many.
        # What draws random numbers, or has found a scale of the loss, begins anew at every call.
        anew = self.distiller._mixing is not None or isinstance(
            self.distiller.optimizer, keras.mixed_precision.LossScaleOptimizer
        )
        if candidate.name not in self._runs or anew:
            self._runs[candidate.name] = _Run(self.distiller, candidate)
        run = self._runs[candidate.name]
        run.train(self.batches(steps), steps, self.steps, self.class_weight)
        score = run.score(self.validation_data, self.validation_batch_size)
        say(
            f"Tried {candidate.name}, {steps} steps: validation accuracy {score.accuracy:.4f}, "
            f"log loss {score.log_loss:.4f}"
        )
        return score


def choose_on(
    distiller: Distiller,
    auto: Auto,
    x: Any,
    y: Any,
    batch_size: int | None,
    epochs: int,
    options: dict[str, Any],
) -> Choice:
    """Chooses for what `fit` was given.

    Args:
        distiller: Compiled.
        auto: Candidates and budget.
        x: Samples, as `fit` takes them.
        y: Labels, as `fit` takes them.
        batch_size: As `fit` takes it.
        epochs: As `fit` takes it.
        options: The other arguments of `fit`.

    Raises:
        ConfigurationError: No validation data, or training data that can be gone over only once.
    """
    validation = options.get("validation_data")
    if validation is None:
        raise ConfigurationError(
            'losses="auto" chooses by the validation accuracy. Expected validation_data=(x, y) in '
            f"fit(). Received: {'validation_split' if options.get('validation_split') else 'none'}."
            " Hold samples out, or name the losses."
        )
    batches, available = _batches(
        x, y, options.get("sample_weight"), batch_size or 32, options.get("shuffle", True)
    )
    steps_an_epoch = options.get("steps_per_epoch") or available
    if steps_an_epoch is None:
        raise ConfigurationError(
            'losses="auto" has to know how long the training is. Pass steps_per_epoch= to fit(): '
            "the tf.data.Dataset does not tell how many batches it has."
        )
    steps = steps_an_epoch * max(epochs - (options.get("initial_epoch") or 0), 0)
    trials = Trials(
        distiller,
        batches,
        validation,
        steps=steps,
        class_weight=options.get("class_weight"),
        validation_batch_size=options.get("validation_batch_size"),
    )
    with trials:
        choice = auto.choose(trials, distiller.task, steps=steps, steps_an_epoch=steps_an_epoch)
    say(str(choice))
    return choice


class _Run:
    """A candidate on the student, compiled once."""

    def __init__(self, distiller: Distiller, candidate: Candidate) -> None:
        self.stretch = tf.Variable(1.0, trainable=False, name="stretch")
        with distiller.distribute_strategy.scope():
            self.trained = _with_losses(distiller, candidate)
            self.optimizer = _copy(distiller.optimizer, self.stretch)
            hard_labels = distiller._objective.hard_labels
            self.metrics = _metrics(self.trained)
            self.trained.compile(
                self.optimizer,
                None if hard_labels is None else hard_labels.loss,
                weighted_metrics=self.metrics,
                run_eagerly=distiller.run_eagerly,
                jit_compile=distiller.jit_compile,
            )
            self.optimizer.build(self.trained.trained_variables)
            # A variable, since a number would be fixed when the step is traced.
            self.average = tf.Variable(self.optimizer.ema_momentum or 0.0, trainable=False)
            self.momentum = self.optimizer.ema_momentum
            self.optimizer.ema_momentum = self.average
        self.state = [*self.optimizer.variables, *self.trained.loss_variables]
        self.start = [variable.numpy() for variable in self.state]

    def train(self, batches: Any, steps: int, whole: int, class_weight: Any) -> None:
        """Trains the student, from its weights, by a training of `whole` steps in `steps`."""
        for variable, value in zip(self.state, self.start, strict=True):
            variable.assign(value)
        self.stretch.assign(whole / steps)
        self.average.assign((self.momentum or 0.0) ** (whole / steps))
        objective = self.trained._objective
        # A step is to a run what an epoch is to the training, for whatever has a schedule.
        each_step = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda step, logs: objective.begin_epoch(step, steps)
        )
        self.trained.fit(
            batches,
            steps_per_epoch=steps,
            callbacks=[each_step],
            class_weight=class_weight,
            verbose=0,
        )

    def score(self, validation_data: Any, batch_size: int | None) -> Score:
        """Returns what the student scores."""
        parts = (validation_data, None, None)
        if isinstance(validation_data, list | tuple):
            parts = keras.utils.unpack_x_y_sample_weight(tuple(validation_data))
        x, y, sample_weight = parts
        values = self.trained.evaluate(
            x, y, batch_size, sample_weight=sample_weight, verbose=0, return_dict=True
        )
        # With sample weights, their sum; a replica's variable is read as the sum over all.
        counted = float(tf.convert_to_tensor(self.metrics[0].count))
        return Score(values[_ACCURACY], values[_LOG_LOSS], counted)


def _with_losses(distiller: Distiller, candidate: Candidate) -> Distiller:
    """Returns another Distiller of the same student, by other losses."""
    return type(distiller)(
        distiller.student,
        distiller._teacher,
        losses=candidate.losses(),
        hard_label_weight=candidate.hard_label_weight,
        loss_weights=candidate.loss_weights,
        student_preprocessing=distiller._preprocessing,
        mixing=distiller._mixing,
        student_outputs=distiller._student_outputs,
        task=distiller.task,
    )


_ACCURACY, _LOG_LOSS = "validation_accuracy", "validation_log_loss"


def _copy(optimizer: Any, stretch: tf.Variable) -> Any:
    """Returns a new optimizer of the same settings, `stretch` steps of its schedule in one."""
    optimizer = _inner(optimizer)
    config = optimizer.get_config()
    schedule = optimizer._learning_rate
    if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        config["learning_rate"] = _Stretched(schedule, stretch)
    copy = type(optimizer).from_config(config)
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_names"):
        if hasattr(optimizer, name):
            setattr(copy, name, getattr(optimizer, name))
    return copy


def _inner(optimizer: Any) -> Any:
    """Returns the optimizer itself, without the scaling of the loss around it."""
    return getattr(optimizer, "inner_optimizer", optimizer)


class _Stretched(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of the learning rate that is gone through faster."""

    def __init__(self, schedule: Any, stretch: tf.Variable) -> None:
        self.schedule = schedule
        self.stretch = stretch

    def __call__(self, step: Any) -> tf.Tensor:
        return self.schedule(tf.cast(step, tf.float32) * self.stretch)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "stretch": self.stretch}


def _metrics(distiller: Distiller) -> list[keras.metrics.Metric]:
    kind, task = distiller._student_outputs, distiller.task

    def decided(y: Any, outputs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        logits = as_classes(to_logits(outputs, kind), task)
        if task == "multilabel":
            y = tf.reshape(tf.cast(y > 0.5, tf.int32), tf.shape(logits)[:-1])
        return labelled(y, logits), logits

    def right(y: Any, outputs: Any) -> tf.Tensor:
        labels, logits = decided(y, outputs)
        return tf.cast(tf.reduce_any(labels & (decisions(logits) > 0), axis=-1), tf.float32)

    def log_loss(y: Any, outputs: Any) -> tf.Tensor:
        labels, logits = decided(y, outputs)
        log_p = tf.nn.log_softmax(logits)
        return -tf.reduce_sum(tf.where(labels, log_p, tf.zeros_like(log_p)), axis=-1)

    wrapped = keras.metrics.MeanMetricWrapper
    return [wrapped(right, name=_ACCURACY), wrapped(log_loss, name=_LOG_LOSS)]


def _batches(
    x: Any, y: Any, sample_weight: Any, batch_size: int, shuffle: bool
) -> tuple[Callable[[int], Any], int | None]:
    """Returns what gives the first so many batches, and how many batches an epoch has."""
    if isinstance(x, tf.data.Dataset):
        count = int(x.cardinality())
        return lambda steps: x.repeat().take(steps), count if count >= 0 else None
    if isinstance(x, keras.utils.Sequence):
        return lambda steps: (x[step % len(x)] for step in range(steps)), len(x)
    arrays = tf.nest.flatten(x)
    if not arrays or not all(hasattr(part, "shape") for part in arrays):
        raise ConfigurationError(
            'losses="auto" goes over the training data several times. Expected arrays, a '
            "tf.data.Dataset or a Sequence. Received: a "
            f"{'generator' if isinstance(x, Iterator) else type(x).__name__}. Make one of it, or "
            "name the losses."
        )
    data = (x, y) if sample_weight is None else (x, y, sample_weight)
    data = tf.nest.map_structure(np.asarray, data)
    samples = len(tf.nest.flatten(data)[0])

    def drawn(steps: int) -> Iterator[Any]:
        order = np.random.default_rng(_SEED)
        rows = np.arange(0)
        for _ in range(steps):
            while len(rows) < min(batch_size, samples):
                epoch = order.permutation(samples) if shuffle else np.arange(samples)
                rows = np.concatenate([rows, epoch])
            taken, rows = rows[:batch_size], rows[batch_size:]
            yield tf.nest.map_structure(lambda part, taken=taken: part[taken], data)

    return drawn, -(-samples // batch_size)
