"""losses="auto" tries candidates shortly, within its budget, and without a trace."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kdtflite.distillation.search.auto as choosing
from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.losses.logits.soft_targets import SoftTargets
from kdtflite.distillation.schedules import Linear
from kdtflite.distillation.search.auto import Score
from kdtflite.distillation.search.candidates import (
    CANDIDATES,
    HARD_LABELS,
    LABEL_SMOOTHING,
    Candidate,
)
from kdtflite.distillation.search.trials import Trials, choose_losses
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.quantization.aware import quantize_aware

CrossEntropy = keras.losses.SparseCategoricalCrossentropy
Auto = functools.partial(choosing.Auto, min_steps=10)  # the trainings here are short
FEW = Auto(CANDIDATES[:3])
A, B, C = (Candidate(name, lambda: [SoftTargets(1.0)], 0.5) for name in "abc")


def names(choice, rung):
    return [trial.candidate for trial in choice.trials if trial.rung == rung]


def test_halving_worked_by_hand():
    # 360 steps of 3600 for four candidates: rungs of 4 and 2 share them 1 : 2, 30 and 120 a run.
    scores = {HARD_LABELS.name: 0.5, "a": 0.6, "b": 0.9, "c": 0.7}
    asked = []

    def run(candidate, steps):
        asked.append((candidate.name, steps))
        return Score(scores[candidate.name], 1.0)

    choice = Auto([A, B, C], max_fraction=0.1).choose(run, steps=3600, steps_per_epoch=180)
    assert asked == [
        (HARD_LABELS.name, 30), ("a", 30), ("b", 30), ("c", 30),
        (HARD_LABELS.name, 120), ("b", 120),
    ]  # fmt: skip
    assert (choice.chosen, choice.trial_steps, choice.steps) == ("b", 360, 3600)
    assert [trial.epochs for trial in choice.trials[-2:]] == [120 / 180] * 2
    assert "90.00% against 50.00%" in choice.why
    assert choice.to_dict()["trials"][2] == {
        "candidate": "b", "rung": 1, "steps": 30, "epochs": 30 / 180,
        "accuracy": 0.9, "log_loss": 1.0, "samples": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("first", "last", "chosen"),
    [
        ((0.9, 0.1), (0.4, 0.1), HARD_LABELS.name),  # it led, and is behind after the longest run
        ((0.9, 0.1), (0.5, 1.0), HARD_LABELS.name),  # no better: without a teacher
        ((0.2, 9.0), (0.5, 0.9), "a"),  # the same accuracy, less loss
        ((0.9, 0.1), (0.5, math.nan), HARD_LABELS.name),
    ],
)
def test_whoever_is_not_better_than_hard_labels_in_the_end_is_not_chosen(first, last, chosen):
    def run(candidate, steps):
        if candidate is HARD_LABELS:
            return Score(0.5, 1.0)
        accuracy, log_loss = first if steps == 20 else last
        return Score(accuracy - 0.1 * (candidate is B), log_loss)

    choice = Auto([A, B]).choose(run, steps=540, steps_per_epoch=10)
    assert names(choice, 2) == [HARD_LABELS.name, "a"]
    assert choice.chosen == chosen


@pytest.mark.parametrize(
    ("accuracy", "log_loss", "samples", "chosen"),
    [
        # The error of 80 % of 400 samples: √(0.8 · 0.2 / 400) = 0.02.
        (0.785, 9.0, 400, "a"),
        (0.775, 9.0, 400, HARD_LABELS.name),
        (0.785, math.nan, 400, HARD_LABELS.name),
        # Of 40,000 samples 0.002; of an unknown number none.
        (0.7985, 9.0, 40_000, "a"),
        (0.785, 9.0, 40_000, HARD_LABELS.name),
        (0.7985, 9.0, None, HARD_LABELS.name),
    ],
)
def test_behind_hard_labels_by_less_than_the_standard_error_the_teacher_is_followed(
    accuracy, log_loss, samples, chosen
):
    def run(candidate, steps):
        hard = candidate is HARD_LABELS
        return Score(0.8 if hard else accuracy, 1.0 if hard else log_loss, samples)

    choice = Auto([A]).choose(run, steps=600, steps_per_epoch=10)
    assert choice.chosen == chosen
    assert ("standard error of" in choice.why) == (chosen == "a")


@pytest.mark.parametrize("accuracy", [0.81, 0.795])
def test_label_smoothing_has_to_be_ahead_as_it_has_no_teacher_to_wait_for(accuracy):
    def run(candidate, steps):
        return Score(accuracy if candidate is LABEL_SMOOTHING else 0.8, 1.0, 400)

    choice = Auto([LABEL_SMOOTHING]).choose(run, steps=600, steps_per_epoch=10)
    assert choice.chosen == (LABEL_SMOOTHING if accuracy > 0.8 else HARD_LABELS).name


@pytest.mark.parametrize(
    ("late", "chosen"), [(0.87, "b"), (0.79, "b"), (0.7, LABEL_SMOOTHING.name)]
)
def test_the_best_candidate_with_a_teacher_runs_to_the_end(late, chosen):
    # Both ways without a teacher lead after the first runs. In the end smoothing has 0.8 with a
    # standard error of 0.02.
    def run(candidate, steps):
        early = {"a": 0.1, "b": 0.2, "c": 0.15, LABEL_SMOOTHING.name: 0.4, HARD_LABELS.name: 0.3}
        last = {"b": late, LABEL_SMOOTHING.name: 0.8, HARD_LABELS.name: 0.6}
        return Score((early if steps == 20 else last)[candidate.name], 1.0, 400)

    # 300 steps for trials: rungs of 5 and 3 candidates share them 1 : 2.
    choice = Auto([A, B, C, LABEL_SMOOTHING]).choose(run, steps=900, steps_per_epoch=10)
    assert names(choice, 2) == [HARD_LABELS.name, LABEL_SMOOTHING.name, "b"]
    assert (choice.trials[-1].steps, choice.trial_steps) == (66, 298)
    assert choice.chosen == chosen
    assert LABEL_SMOOTHING.name in choice.why


def test_two_leading_ways_without_a_teacher_do_not_crowd_out_the_last_one_with():
    other = Candidate("other", lambda: [SoftTargets(1.0)], 0.5, has_teacher=False)
    accuracies = {"a": 0.2, "b": 0.1, "other": 0.4, LABEL_SMOOTHING.name: 0.5}

    def run(candidate, steps):
        return Score(accuracies.get(candidate.name, 0.3), 1.0, 400)

    choice = Auto([A, B, LABEL_SMOOTHING, other]).choose(run, steps=900, steps_per_epoch=10)
    assert names(choice, 2) == [HARD_LABELS.name, LABEL_SMOOTHING.name, "a"]
    assert choice.chosen == LABEL_SMOOTHING.name


def test_the_candidate_is_label_smoothing_as_keras_has_it(models):
    (loss,) = LABEL_SMOOTHING.losses()
    logits, other = np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 5.0, 1.0]])
    log_p = logits[0] - np.log(np.exp(logits).sum())
    hard = LABEL_SMOOTHING.hard_label_weight
    total = -hard * log_p[0] + (1 - hard) * float(loss(logits, other)[0])
    smooth = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    assert total == pytest.approx(float(smooth([[1.0, 0.0, 0.0]], logits)), rel=1e-6)


def test_a_trial_counts_the_samples_it_was_judged_by(models):
    made, validation = distiller(models), draw_blobs(101, 2)
    trials = Trials(made, lambda steps: iter([draw_blobs(16, 1)] * steps), validation, steps=100)
    with trials:
        assert [trials(HARD_LABELS, 10).samples, trials(HARD_LABELS, 10).samples] == [101, 101]


def test_fewer_candidates_run_where_runs_would_be_shorter_than_thirty_steps():
    # 188 steps: of three candidates each would first have 188 / 3 / 3 = 20, of two all of 188 / 2.
    asked = []

    def run(candidate, steps):
        asked.append((candidate.name, steps))
        return Score(0.5, 1.0)

    choosing.Auto().choose(run, steps=564, steps_per_epoch=47)
    assert asked == [(HARD_LABELS.name, 94), (CANDIDATES[1].name, 94)]
    with pytest.raises(ConfigurationError, match="min_steps=0"):
        choosing.Auto(min_steps=0)


def test_a_training_too_short_for_trials_has_none():
    choice = Auto().choose(lambda *_: pytest.fail("a trial"), steps=59, steps_per_epoch=10)
    assert (choice.chosen, choice.trials) == (HARD_LABELS.name, ())
    assert "too short" in choice.why
    one_more = Auto().choose(lambda *_: Score(0.5, 1.0), steps=60, steps_per_epoch=10)
    assert names(one_more, 1) == [HARD_LABELS.name, CANDIDATES[1].name]


@pytest.mark.parametrize("candidates", range(1, 12))
@pytest.mark.parametrize("steps", [60, 61, 500, 12345])
def test_the_budget_is_a_third_whatever_the_number_of_candidates(candidates, steps):
    more = [Candidate(str(n), lambda: [SoftTargets(1.0)]) for n in range(candidates)]
    choice = Auto(more).choose(lambda *_: Score(0.5, 1.0), steps=steps, steps_per_epoch=7)
    assert choice.trial_steps <= steps / 3
    assert choice.trial_steps > 0.7 * steps / 3
    last = [trial for trial in choice.trials if trial.rung == choice.trials[-1].rung]
    assert not choice.trials or len(last) == 2


def draw_blobs(samples, seed, noise=0.0):
    """Three classes around corners of a cube; some labels drawn at random."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, samples)
    x = (np.eye(4)[y] * 2 + rng.normal(0, 0.8, (samples, 4))).astype(np.float32)
    wrong = rng.random(samples) < noise
    return x, np.where(wrong, rng.integers(0, 3, samples), y)


def teacher(order=(0, 1, 2)):
    """Knows the classes; in another order it takes each for another."""
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(3)
    model = keras.Model(inputs, layer(inputs), name="teacher")
    layer.set_weights([4 * np.eye(4)[:, list(order)], np.zeros(3)])
    return model


class Counted(keras.utils.Sequence):
    """Batches of 16, and how many were taken."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.taken = x, y, 0

    def __len__(self):
        return len(self.x) // 16

    def __getitem__(self, place):
        self.taken += 1
        rows = slice(16 * place, 16 * place + 16)
        return self.x[rows], self.y[rows]


def distiller(models, *, knows=True, losses="auto", student=None, **options):
    student = models.student(norm=True) if student is None else student
    made = Distiller(student, teacher() if knows else teacher((1, 2, 0)), losses=losses, **options)
    steps = 720
    made.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, steps)),
        CrossEntropy(from_logits=True),
        metrics=["accuracy"],
    )
    return made


def train(made, *, noise=0.0, samples=192, epochs=60):
    data = tf.data.Dataset.from_tensor_slices(draw_blobs(samples, 1, noise)).batch(16)
    made.fit(data, epochs=epochs, validation_data=draw_blobs(400, 2), verbose=0)
    return made.choice


def test_a_teacher_that_is_wrong_is_not_followed(models):
    choice = train(distiller(models, knows=False, losses=Auto()), epochs=70)
    assert choice.chosen == HARD_LABELS.name
    assert names(choice, 1) == [candidate.name for candidate in CANDIDATES]


def test_a_teacher_that_knows_better_than_the_labels_is_followed(models):
    made = distiller(models)
    choice = train(made, noise=0.6)
    assert choice.chosen != HARD_LABELS.name
    assert choice.chosen in choice.trials[-1].candidate
    assert made._objective.losses[0].name.endswith("soft_targets")
    assert made.loss_variables == []
    assert "Chosen: " + choice.chosen in str(choice)


def test_the_same_again_gives_the_same_choice(models):
    keras.utils.set_random_seed(1)
    first = train(distiller(models, losses=FEW), noise=0.3)
    keras.utils.set_random_seed(2)
    assert train(distiller(models, losses=FEW), noise=0.3) == first


def test_the_same_trial_again_gives_the_same_score_in_float16(models):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        made = distiller(models, losses=FEW, student=models.student())
    finally:
        keras.mixed_precision.set_global_policy("float32")
    x, y = draw_blobs(192, 1)
    # Gradients that overflow at first: the scale of the loss falls in the run.
    data = tf.data.Dataset.from_tensor_slices((1000 * x, y)).batch(16).repeat()
    with Trials(made, data.take, (x, y), steps=80) as trials:
        assert trials(HARD_LABELS, 20) == trials(HARD_LABELS, 20)


def test_the_trials_leave_no_trace_in_the_training(models):
    chosen = distiller(models, losses=FEW)
    choice = train(chosen, noise=0.6)
    candidate = Auto().find_candidate(choice.chosen)
    named = distiller(
        models, losses=candidate.losses(), hard_label_weight=candidate.hard_label_weight
    )
    train(named, noise=0.6)
    for own, other in zip(chosen.student.get_weights(), named.student.get_weights(), strict=True):
        np.testing.assert_array_equal(own, other)
    for own, other in zip(chosen.optimizer.variables, named.optimizer.variables, strict=True):
        np.testing.assert_array_equal(own.numpy(), other.numpy())


def test_weights_statistics_and_ranges_are_what_they_were(models):
    student = quantize_aware(models.student(norm=True), draw_blobs(64, 1)[0])
    made = distiller(models, student=student)
    before = [weight.copy() for weight in student.get_weights()]
    data = draw_blobs(192, 1)
    options = {"validation_data": draw_blobs(100, 2)}
    choice = choose_losses(made, FEW, *data, 16, 30, options)
    assert len(choice.trials) == 3 + 2
    # In 40 steps, of which batch normalization's own momentum would forget but a third.
    assert choice.trials[-2].steps == 40
    assert choice.trials[-2].accuracy > 0.8
    for now, then in zip(student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert made.optimizer.iterations.numpy() == 0
    norms = [layer for layer in student._flatten_layers() if hasattr(layer, "moving_mean")]
    assert [layer.momentum for layer in norms] == [0.99]


def test_the_steps_taken_are_within_the_budget(models):
    counted = Counted(*draw_blobs(192, 1))
    made = distiller(models)
    options = {"validation_data": draw_blobs(100, 2)}
    choice = choose_losses(made, FEW, counted, None, None, 30, options)
    # Keras looks at a batch more before each of the 5 runs, which trains nothing.
    assert choice.trial_steps <= counted.taken <= choice.trial_steps + 3 * 5
    assert choice.steps == 12 * 30
    assert 80 < choice.trial_steps <= 120


def test_every_trial_goes_through_the_whole_schedule(models):
    seen = {}

    class Watched(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            def note(place):
                seen.setdefault(float(place), 0)
                return np.float32(0.01)

            rate = tf.numpy_function(note, [tf.cast(step, tf.float32)], tf.float32)
            rate.set_shape([])
            return rate

        def get_config(self):
            return {}

    made = Distiller(models.student(), teacher(), losses=Auto([A]))
    made.compile(keras.optimizers.SGD(Watched()), CrossEntropy(from_logits=True))
    seen.clear()
    options = {"validation_data": draw_blobs(100, 2)}
    choice = choose_losses(made, Auto([A]), *draw_blobs(192, 1), 16, 20, options)
    (length,) = {trial.steps for trial in choice.trials}
    stretch = 240 / length
    expected = [place * stretch for place in range(length)]
    np.testing.assert_allclose(sorted(seen)[:length], expected, rtol=1e-5)


def test_scheduled_weights_go_their_whole_way_in_a_trial(models):
    values = []

    class Noted(Linear):
        def begin(self, epoch, epochs):
            values.append(self.at(epoch, epochs))
            super().begin(epoch, epochs)

    falling = Candidate("falling", lambda: [SoftTargets(1.0)], Noted(1.0, 0.0))
    options = {"validation_data": draw_blobs(100, 2)}
    choose_losses(distiller(models), Auto([falling]), *draw_blobs(192, 1), 16, 20, options)
    assert values[-1] == 0.0
    assert max(values) == 1.0
    assert len(set(values)) == 40


def test_averaged_weights_and_weight_decay_are_those_of_the_training(models):
    student = models.student()
    made = Distiller(student, teacher(), losses=Auto([A], max_fraction=1.0))
    optimizer = keras.optimizers.Adam(0.01, weight_decay=0.1, use_ema=True, ema_momentum=0.9)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    made.compile(optimizer, CrossEntropy(from_logits=True))
    data = tf.data.Dataset.from_tensor_slices(draw_blobs(192, 1)).batch(16)
    made.fit(data, epochs=4, validation_data=draw_blobs(300, 2), verbose=0)
    first = made.choice.trials[0]
    # Hard labels alone for half the steps, by hand.
    alone = models.student()
    optimizer = keras.optimizers.Adam(0.01, weight_decay=0.1, use_ema=True, ema_momentum=0.81)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    alone.compile(optimizer, CrossEntropy(from_logits=True), metrics=["accuracy"])
    alone.fit(data.repeat().take(24), verbose=0)
    assert first.steps == 24
    loss, accuracy = alone.evaluate(*draw_blobs(300, 2), verbose=0)
    assert first.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert first.log_loss == pytest.approx(loss, rel=1e-4)


def test_yes_or_no_labels_are_scored_label_by_label(models):
    x, y = draw_blobs(200, 1)
    labels = np.eye(3)[y].astype(np.float32)
    made = Distiller(models.student(), teacher(), losses=FEW, task="multilabel")
    made.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    made.fit(x, labels, epochs=12, batch_size=8, validation_data=(x, labels), verbose=0)
    assert {trial.candidate for trial in made.choice.trials} <= {c.name for c in CANDIDATES}
    assert made.choice.trials[0].accuracy > 1 / 3


def test_a_student_of_values_has_nothing_to_choose_from(models):
    made = Distiller(
        models.student(), models.teacher(), losses="auto", task="regression",
        teacher_outputs="values",
    )  # fmt: skip
    made.compile("adam", "mse")
    x, y = draw_blobs(64, 1)
    made.fit(x, np.eye(3)[y], validation_data=(x, np.eye(3)[y]), verbose=0)
    assert made.choice.chosen == HARD_LABELS.name
    assert "no other candidate for a regression student" in made.choice.why


def test_evaluation_before_the_choice_leaves_nothing_in_that_after_it(models):
    made, (x, y) = distiller(models, losses=Auto([A])), draw_blobs(100, 2)
    made.evaluate(x, y, verbose=0)
    train(made)
    loss = CrossEntropy(from_logits=True)(y, made.student.predict(x, verbose=0))
    assert made.evaluate(x, y, verbose=0)[0] == pytest.approx(float(loss), rel=1e-5)


def test_a_second_fit_does_not_choose_again(models):
    made = distiller(models, losses=Auto([A]))
    choice = train(made)
    assert train(made) is choice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"Expected validation_data=\(x, y\)"),
        ({"validation_split": 0.2}, "Received: validation_split"),
    ],
)
def test_without_validation_data_there_is_nothing_to_choose_by(models, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        distiller(models).fit(*draw_blobs(64, 1), **arguments)


def test_data_that_can_be_gone_over_only_once_are_refused(models):
    stream = (batch for batch in [draw_blobs(16, 1)] * 4)
    with pytest.raises(ConfigurationError, match="several times"):
        distiller(models).fit(stream, validation_data=draw_blobs(16, 2), steps_per_epoch=2)
    endless = tf.data.Dataset.from_tensor_slices(draw_blobs(64, 1)).batch(8).repeat()
    with pytest.raises(ConfigurationError, match="steps_per_epoch"):
        distiller(models).fit(endless, validation_data=draw_blobs(16, 2))


def test_a_legacy_optimizer_is_refused(models):
    made = Distiller(models.student(), teacher(), losses="auto")
    made.compile(keras.optimizers.legacy.SGD(0.1), CrossEntropy(from_logits=True))
    with pytest.raises(ConfigurationError, match="legacy"):
        made.fit(*draw_blobs(64, 1), validation_data=draw_blobs(16, 2))


@pytest.mark.parametrize("options", [{"hard_label_weight": 0.5}, {"loss_weights": [1.0]}])
def test_weights_beside_auto_are_refused(models, options):
    with pytest.raises(ConfigurationError, match="chooses the weights as well"):
        Distiller(models.student(), teacher(), losses="auto", **options)


def test_other_words_and_no_teacher_are_refused(models):
    with pytest.raises(ConfigurationError, match="Received: 'best'"):
        Distiller(models.student(), teacher(), losses="best")
    with pytest.raises(ConfigurationError, match="Expected a teacher"):
        Distiller(models.student(), None, losses="auto")


def test_candidates_of_one_name_and_shares_out_of_range_are_refused():
    with pytest.raises(ConfigurationError, match="name of its own"):
        Auto([A, A])
    with pytest.raises(ConfigurationError, match="max_fraction=0"):
        Auto(max_fraction=0)
    with pytest.raises(DataError, match="Received: 'z'"):
        Auto([A]).find_candidate("z")
