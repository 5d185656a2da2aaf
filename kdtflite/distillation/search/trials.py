"""Short runs of a Distiller's student that leave no trace in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.logits.target_classes import one_hot_decisions, one_hot_labels
from kdtflite.distillation.outputs import Outputs, Task, as_classes, to_logits
from kdtflite.distillation.search.auto import Auto, Choice, Score
from kdtflite.distillation.search.candidates import Candidate
from kdtflite.errors import ConfigurationError, TrainingError
from kdtflite.models.batch_norm import find_norms, lend_momenta
from kdtflite.models.keras_internals import copy_weight_decay_exceptions, get_schedule
from kdtflite.progress import say

__all__ = ["Trials", "choose_losses"]

_SEED = 20_160_207


class _Distiller(Protocol):
    """What trials need of a compiled Distiller, which itself imports this module."""

    student: keras.Model
    student_outputs: Outputs
    task: Task

    @property
    def uses_randomness(self) -> bool:
        """Whether a training step draws random numbers."""

    def fingerprint_teacher(self) -> str:
        """Returns what changes when the teacher's outputs do."""

    def with_losses(self, losses: Any, hard_label_weight: Any, loss_weights: Any) -> Any:
        """Returns another Distiller of the same student and teacher with other losses."""

    def __getattr__(self, name: str) -> Any:
        """Whatever else a Keras model has: its optimizer, loss and options of compile."""


class Trials:
    """Trains a Distiller's student with one candidate after another, each from the same weights.

    Use it as a context: when it closes, the student's weights, ranges and statistics are restored.
    The compiled optimizer is never touched. Runs use copies of it, whose learning-rate schedule is
    compressed into the run. So are the moving averages of the weights and of batch normalization,
    which would otherwise be validated with statistics that it has hardly begun to learn.

    Args:
        distiller: Compiled. Its own losses do not matter.
        batches: Returns the given number of first training batches, the same at every call.
        validation_data: As `fit` takes it.
        steps: Steps of the whole training, for which its learning-rate schedule is made.
        class_weight: As `fit` takes it.
        validation_batch_size: As `fit` takes it.

    Raises:
        ConfigurationError: A legacy optimizer, which cannot be copied with a faster schedule.
    """

    def __init__(
        self,
        distiller: _Distiller,
        batches: Callable[[int], Any],
        validation_data: Any,
        *,
        steps: int,
        class_weight: Any = None,
        validation_batch_size: int | None = None,
    ) -> None:
        optimizer = _unwrap(distiller.optimizer)
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
        self._norms = find_norms(distiller.student)
        # Each layer's own momentum, and the variable that stands for it.
        self._momenta: list[tuple[float, tf.Variable]] = []
        self._lent = contextlib.ExitStack()

    @property
    def teacher(self) -> str:
        """The teacher's fingerprint: scores hold for one teacher only."""
        return self.distiller.fingerprint_teacher()

    def __enter__(self) -> Trials:
        own = [layer.momentum for layer in self._norms]
        lent = self._lent.enter_context(lend_momenta(self._norms))
        self._momenta = list(zip(own, lent, strict=True))
        return self

    def __exit__(self, *exception: object) -> None:
        self._lent.close()
        self.distiller.student.set_weights(self._weights)

    def __call__(self, candidate: Candidate, steps: int) -> Score:
        """Returns the student's score after `steps` of training with `candidate`."""
        self.distiller.student.set_weights(self._weights)
        for own, momentum in self._momenta:
            momentum.assign(own ** (self.steps / steps))
        # Kept for the candidate's longer runs: tracing a step costs more than running many.
        # What draws random numbers, or adapts the scale of the loss, starts anew at every call.
        anew = self.distiller.uses_randomness or isinstance(
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


def choose_losses(
    distiller: _Distiller,
    auto: Auto,
    x: Any,
    y: Any,
    batch_size: int | None,
    epochs: int,
    options: dict[str, Any],
) -> Choice:
    """Chooses the losses for the training that `fit` was asked for.

    Args:
        distiller: Compiled.
        auto: Candidates and budget.
        x: Samples, as `fit` takes them.
        y: Labels, as `fit` takes them.
        batch_size: As `fit` takes it.
        epochs: As `fit` takes it.
        options: The other arguments of `fit`.

    Raises:
        ConfigurationError: No validation data, or training data that can be read only once.
    """
    validation = options.get("validation_data")
    if validation is None:
        raise ConfigurationError(
            'losses="auto" chooses by the validation accuracy. Expected validation_data=(x, y) in '
            f"fit(). Received: {'validation_split' if options.get('validation_split') else 'none'}."
            " Hold samples out, or name the losses."
        )
    batches, available = _prepare_batches(
        x, y, options.get("sample_weight"), batch_size or 32, options.get("shuffle", True)
    )
    steps_per_epoch = options.get("steps_per_epoch") or available
    if steps_per_epoch is None:
        raise ConfigurationError(
            'losses="auto" has to know how long the training is. Pass steps_per_epoch= to fit(): '
            "the number of batches of this tf.data.Dataset is unknown."
        )
    steps = steps_per_epoch * max(epochs - (options.get("initial_epoch") or 0), 0)
    trials = Trials(
        distiller,
        batches,
        validation,
        steps=steps,
        class_weight=options.get("class_weight"),
        validation_batch_size=options.get("validation_batch_size"),
    )
    with trials:
        choice = auto.choose(trials, distiller.task, steps=steps, steps_per_epoch=steps_per_epoch)
    say(str(choice))
    return choice


class _Run:
    """The student with one candidate's losses, compiled once."""

    def __init__(self, distiller: _Distiller, candidate: Candidate) -> None:
        self.stretch = tf.Variable(1.0, trainable=False, name="stretch")
        with distiller.distribute_strategy.scope():
            self.trained = distiller.with_losses(
                candidate.losses(), candidate.hard_label_weight, candidate.loss_weights
            )
            self.trained.reports_teachers = False
            self.optimizer = _copy_optimizer(distiller.optimizer, self.stretch)
            self.metrics = _build_metrics(distiller.student_outputs, distiller.task)
            self.trained.compile(
                self.optimizer,
                distiller.loss or None,
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
        """Trains the student from its current weights: `whole` steps compressed into `steps`."""
        for variable, value in zip(self.state, self.start, strict=True):
            variable.assign(value)
        self.stretch.assign(whole / steps)
        self.average.assign((self.momentum or 0.0) ** (whole / steps))
        # For whatever has a schedule, a step of the run stands for an epoch of the training.
        each_step = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda step, logs: self.trained.begin_epoch(step, steps)
        )
        # A candidate that diverges is scored with the weights that it has: it loses.
        with contextlib.suppress(TrainingError):
            self.trained.fit(
                batches,
                steps_per_epoch=steps,
                callbacks=[each_step],
                class_weight=class_weight,
                verbose=0,
            )

    def score(self, validation_data: Any, batch_size: int | None) -> Score:
        """Returns the student's score."""
        parts = (validation_data, None, None)
        if isinstance(validation_data, list | tuple):
            parts = keras.utils.unpack_x_y_sample_weight(tuple(validation_data))
        x, y, sample_weight = parts
        values = self.trained.evaluate(
            x, y, batch_size, sample_weight=sample_weight, verbose=0, return_dict=True
        )
        # With sample weights, their sum. A replica's variable is read as the sum over all replicas.
        counted = float(tf.convert_to_tensor(self.metrics[0].count))
        return Score(values[_ACCURACY], values[_LOG_LOSS], counted)


_ACCURACY, _LOG_LOSS = "validation_accuracy", "validation_log_loss"


def _copy_optimizer(optimizer: Any, stretch: tf.Variable) -> Any:
    """Returns a new optimizer with the same settings and a schedule that is `stretch` faster."""
    optimizer = _unwrap(optimizer)
    config = optimizer.get_config()
    schedule = get_schedule(optimizer)
    if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        config["learning_rate"] = _FasterSchedule(schedule, stretch)
    copy = type(optimizer).from_config(config)
    copy_weight_decay_exceptions(optimizer, copy)
    return copy


def _unwrap(optimizer: Any) -> Any:
    """Returns the optimizer itself, without the scaling of the loss around it."""
    return getattr(optimizer, "inner_optimizer", optimizer)


class _FasterSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning-rate schedule that advances faster."""

    def __init__(self, schedule: Any, stretch: tf.Variable) -> None:
        self.schedule = schedule
        self.stretch = stretch

    def __call__(self, step: Any) -> tf.Tensor:
        return self.schedule(tf.cast(step, tf.float32) * self.stretch)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "stretch": self.stretch}


def _build_metrics(kind: Outputs, task: Task) -> list[keras.metrics.Metric]:
    def decide(y: Any, outputs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        logits = as_classes(to_logits(outputs, kind), task)
        if task == "multilabel":
            y = tf.reshape(tf.cast(y > 0.5, tf.int32), tf.shape(logits)[:-1])
        return one_hot_labels(y, logits), logits

    def is_right(y: Any, outputs: Any) -> tf.Tensor:
        labels, logits = decide(y, outputs)
        return tf.cast(tf.reduce_any(labels & (one_hot_decisions(logits) > 0), axis=-1), tf.float32)

    def compute_log_loss(y: Any, outputs: Any) -> tf.Tensor:
        labels, logits = decide(y, outputs)
        log_p = tf.nn.log_softmax(logits)
        return -tf.reduce_sum(tf.where(labels, log_p, tf.zeros_like(log_p)), axis=-1)

    wrap = keras.metrics.MeanMetricWrapper
    return [wrap(is_right, name=_ACCURACY), wrap(compute_log_loss, name=_LOG_LOSS)]


def _prepare_batches(
    x: Any, y: Any, sample_weight: Any, batch_size: int, shuffle: bool
) -> tuple[Callable[[int], Any], int | None]:
    """Returns a function that gives a number of first batches, and the batches of an epoch."""
    if isinstance(x, tf.data.Dataset):
        count = int(x.cardinality())
        return lambda steps: x.repeat().take(steps), count if count >= 0 else None
    if isinstance(x, keras.utils.Sequence):
        return lambda steps: (x[step % len(x)] for step in range(steps)), len(x)
    arrays = tf.nest.flatten(x)
    if not arrays or not all(hasattr(part, "shape") for part in arrays):
        raise ConfigurationError(
            'losses="auto" reads the training data several times. Expected arrays, a '
            "tf.data.Dataset or a Sequence. Received: a "
            f"{'generator' if isinstance(x, Iterator) else type(x).__name__}. Pass one of them, or "
            "name the losses."
        )
    data = (x, y) if sample_weight is None else (x, y, sample_weight)
    data = tf.nest.map_structure(np.asarray, data)
    samples = len(tf.nest.flatten(data)[0])

    def draw(steps: int) -> Iterator[Any]:
        order = np.random.default_rng(_SEED)
        rows = np.arange(0)
        for _ in range(steps):
            while len(rows) < min(batch_size, samples):
                epoch = order.permutation(samples) if shuffle else np.arange(samples)
                rows = np.concatenate([rows, epoch])
            taken, rows = rows[:batch_size], rows[batch_size:]
            yield tf.nest.map_structure(lambda part, taken=taken: part[taken], data)

    return draw, -(-samples // batch_size)
