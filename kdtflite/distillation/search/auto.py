"""losses="auto": chooses the losses, their weights and their temperature by short runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kdtflite.arguments import ChecksArguments
from kdtflite.distillation.outputs import Task
from kdtflite.distillation.search.candidates import CANDIDATES, HARD_LABELS, Candidate
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.results import Axes, Result, Table, make_axes, make_table

__all__ = ["Auto", "Choice", "Score", "Trial", "as_auto"]


@dataclass(frozen=True)
class Score:
    """A student's score on the validation samples.

    Attributes:
        accuracy: Fraction of the samples that it decides correctly.
        log_loss: Mean of -log of the probability that it gives the right class.
        samples: Number of samples; None where every difference counts.
    """

    accuracy: float
    log_loss: float
    samples: float | None = None

    @property
    def noise(self) -> float:
        """Standard error of the accuracy, √(p (1 - p) / n): smaller differences mean nothing."""
        if not self.samples:
            return 0.0
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.samples)

    @property
    def order(self) -> tuple[float, float]:
        """Sort key, best last: by accuracy, then by log loss."""
        loss = self.log_loss
        return self.accuracy, -loss if math.isfinite(loss) else -math.inf


@dataclass(frozen=True)
class Trial:
    """One short run.

    Attributes:
        candidate: Its name.
        rung: From 1; later rungs train fewer candidates for longer.
        steps: Steps that it trained.
        epochs: The same in passes over the training samples.
        accuracy: On the validation samples.
        log_loss: On the validation samples.
        samples: Number of validation samples, by weight.
    """

    candidate: str
    rung: int
    steps: int
    epochs: float
    accuracy: float
    log_loss: float
    samples: float | None = None


@dataclass(frozen=True)
class Choice(Result):
    """What was tried and what was chosen; `print` shows it as a table.

    Attributes:
        chosen: Name of the candidate that the training uses.
        why: The reason, in one sentence.
        trials: Every run, in order.
        steps: Steps of the training that the choice is for.
        trial_steps: Steps of all trials together.
        baseline: Name of the candidate without distillation.
    """

    chosen: str
    why: str
    trials: tuple[Trial, ...]
    steps: int
    trial_steps: int
    baseline: str = HARD_LABELS.name

    def to_table(self) -> Table:
        """Returns the trials as a rich table, in order."""
        rows = (
            (
                trial.candidate,
                str(trial.rung),
                f"{trial.epochs:.2f}",
                f"{trial.accuracy:.4f}",
                f"{trial.log_loss:.4f}",
            )
            for trial in self.trials
        )
        numbers = ("rung", "epochs", "accuracy", "log loss")
        return make_table(rows, text=["candidate"], numbers=numbers)

    def summary(self) -> str:
        """Returns the chosen candidate and the reason, in one line."""
        return f"Chosen: {self.chosen}. {self.why}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the validation accuracy of each candidate by rung.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        ax = make_axes(ax, 6, 4, xlabel="rung", ylabel="validation accuracy")
        for name in dict.fromkeys(trial.candidate for trial in self.trials):
            runs = [trial for trial in self.trials if trial.candidate == name]
            rungs, accuracies = [run.rung for run in runs], [run.accuracy for run in runs]
            width = 2.5 if name == self.chosen else 1.2
            ax.plot(rungs, accuracies, marker="o", linewidth=width, label=name)
        ax.set_xticks(sorted({trial.rung for trial in self.trials}))
        if self.trials:
            ax.legend()
        return ax


class Auto(ChecksArguments):
    """Chooses among candidates by short runs, which are judged on validation samples.

    Successive halving (Jamieson & Talwalkar, arXiv 1502.07943): all candidates train briefly, the
    better half of them longer, and so on. Every rung takes the same number of steps in total, and
    the last one, which decides, twice as many. Each run starts from the same weights, sees the same
    batches and passes through the whole learning-rate schedule, compressed. Hard labels alone are
    always a candidate and stay to the end, and so does the best candidate with a teacher: after a
    short run, label smoothing, which needs none, may lead by chance. A candidate that is less
    accurate than the best one without a teacher after the longest runs, by more than the standard
    error of that accuracy, is not chosen: a student that distillation harms is trained without it.
    Within that error a candidate with a teacher is chosen, since soft targets pay off late in a
    training, later than these runs last.

    Args:
        candidates: What to choose among, `CANDIDATES` by default, the most promising first: where
            the training is too short to try all of them, the last ones are left out. Hard labels
            alone are added if they are missing.
        max_fraction: All runs together take at most this fraction of the training's steps, above 0
            and at most 1.
        min_steps: Fewest steps of a run, from 1. After fewer steps the candidates differ by
            chance: fewer candidates with longer runs find the better one more often.

    Raises:
        ConfigurationError: Two candidates of the same name, or a number out of its range.

    Example:
        >>> from kdtflite.losses import DecoupledKD
        >>> mine = Candidate("decoupled", lambda: [DecoupledKD()], 0.5)
        >>> auto = Auto([*CANDIDATES, mine], max_fraction=0.2)
        >>> auto.candidates[-1].name
        'decoupled'
    """

    def __init__(
        self,
        candidates: Sequence[Candidate] = CANDIDATES,
        *,
        max_fraction: float = 1 / 3,
        min_steps: int = 30,
    ) -> None:
        others = [candidate for candidate in candidates if candidate is not HARD_LABELS]
        self.candidates = (HARD_LABELS, *others)
        names = [candidate.name for candidate in self.candidates]
        if len(set(names)) < len(names):
            raise ConfigurationError(
                f"Expected every candidate to have a name of its own. Received: "
                f"{', '.join(sorted(names))}."
            )
        if not 0 < max_fraction <= 1:
            raise ConfigurationError(
                "Expected max_fraction above 0 and at most 1. Received: "
                f"max_fraction={max_fraction}."
            )
        if min_steps < 1:
            raise ConfigurationError(
                f"Expected runs of at least one step. Received: min_steps={min_steps}."
            )
        self.max_fraction = max_fraction
        self.min_steps = min_steps

    def find_candidate(self, name: str) -> Candidate:
        """Returns the candidate of this name."""
        found = [candidate for candidate in self.candidates if candidate.name == name]
        if not found:
            raise DataError(
                f"Expected one of the candidates: {', '.join(c.name for c in self.candidates)}. "
                f"Received: {name!r}."
            )
        return found[0]

    def choose(
        self,
        run: Callable[[Candidate, int], Score],
        task: Task = "multiclass",
        *,
        steps: int,
        steps_per_epoch: int,
    ) -> Choice:
        """Runs the trials and returns the choice.

        Args:
            run: Trains the student with a candidate for a number of steps and scores it. The same
                arguments have to give the same score.
            task: Candidates with a loss for other tasks are left out.
            steps: Steps of the training that the choice is for.
            steps_per_epoch: Used to report the trials' lengths in epochs.
        """
        left = [c for c in self.candidates if all(task in loss.tasks for loss in c.losses())]
        trials: list[Trial] = []
        if len(left) == 1:
            why = f"There was no other candidate for a {task} student."
            return Choice(HARD_LABELS.name, why, (), steps, 0)
        budget = int(steps * self.max_fraction)
        while len(left) > 1 and _plan_rungs(left, budget)[0][1] < self.min_steps:
            left.pop()
        if len(left) == 1:
            why = f"A training of {steps} steps is too short to try others: {budget} for trials."
            return Choice(HARD_LABELS.name, why, (), steps, 0)
        for rung, (size, length) in enumerate(_plan_rungs(left, budget), start=1):
            # The hard labels come first and stay, whatever their score.
            left = [HARD_LABELS, *_keep_teacher(left[1:], size - 1)]
            scores = {candidate.name: run(candidate, length) for candidate in left}
            trials += [
                Trial(name, rung, length, length / steps_per_epoch, **asdict(score))
                for name, score in scores.items()
            ]
            # The sort is stable: of equals, the first in the list wins.
            ranked = sorted(left[1:], key=lambda c: scores[c.name].order, reverse=True)
            left = [HARD_LABELS, *ranked]
        taught = next((c for c in ranked if c.has_teacher), ranked[0])
        without = max(
            (c for c in left if c is not taught and not c.has_teacher),
            key=lambda c: scores[c.name].order,
        )
        good = _is_good_enough(taught, scores[taught.name], scores[without.name])
        spent = sum(trial.steps for trial in trials)
        why = _explain(taught.name, without.name, scores, trials[-1], good)
        chosen = taught if good else without
        return Choice(chosen.name, why, tuple(trials), steps, spent)


def as_auto(losses: Any, hard_label_weight: Any, loss_weights: Any) -> Auto | None:
    """Returns the `Auto` that a Distiller's `losses` ask for; None where they are a list.

    Raises:
        ConfigurationError: A word other than "auto", or weights beside it.
    """
    if not isinstance(losses, str | Auto):
        return None
    if isinstance(losses, str) and losses != "auto":
        raise ConfigurationError(
            f'Expected losses to be a list of kdtflite.losses or "auto". Received: {losses!r}.'
        )
    if hard_label_weight is not None or loss_weights is not None:
        raise ConfigurationError(
            'losses="auto" chooses the weights as well. Leave out hard_label_weight= and '
            "loss_weights=, or name the losses."
        )
    return Auto() if isinstance(losses, str) else losses


def _plan_rungs(candidates: Sequence[Candidate], budget: int) -> list[tuple[int, int]]:
    """Returns the number of candidates of each rung and the steps of each run.

    The last ones are the hard labels, the best candidate with a teacher, and, if there are others
    without one, the best of the rest.
    """
    fewest = min(3, 1 + len({candidate.has_teacher for candidate in candidates[1:]}))
    sizes = [len(candidates)]
    while sizes[-1] > fewest:
        sizes.append(max(fewest, math.ceil(sizes[-1] / 2)))
    shares = [budget // (len(sizes) + 1)] * (len(sizes) - 1)
    shares.append(2 * budget // (len(sizes) + 1))
    return [(size, share // size) for size, share in zip(sizes, shares, strict=True)]


def _keep_teacher(ranked: Sequence[Candidate], count: int) -> list[Candidate]:
    """Returns the first candidates, the best one with a teacher among them."""
    kept = list(ranked[:count])
    if not any(candidate.has_teacher for candidate in kept):
        kept[-1:] = [next((c for c in ranked if c.has_teacher), kept[-1])]
    return kept


def _is_good_enough(candidate: Candidate, own: Score, without: Score) -> bool:
    """Whether a candidate is ahead of the best without a teacher, or with one behind by noise."""
    if own.order > without.order:
        return True
    behind = without.accuracy - own.accuracy
    return candidate.has_teacher and behind < without.noise and math.isfinite(own.log_loss)


def _explain(best: str, without: str, scores: dict[str, Score], last: Trial, good: bool) -> str:
    own, hard = scores[best], scores[without]
    after = f"after {last.epochs:.3g} epochs"
    if own.accuracy == hard.accuracy:
        compared = (
            f"as accurate on the validation samples as {without} {after} "
            f"({own.accuracy:.2%}), with a log loss of {own.log_loss:.4f} against "
            f"{hard.log_loss:.4f}"
        )
    else:
        word = "more" if own.accuracy > hard.accuracy else "less"
        compared = (
            f"{word} accurate on the validation samples than {without} {after} "
            f"({own.accuracy:.2%} against {hard.accuracy:.2%})"
        )
    if not good:
        return f"The best other candidate, {best}, was {compared}."
    if own.order > hard.order:
        return f"It was {compared}."
    return (
        f"It was {compared}, which is within the standard error of {hard.noise:.2%}, and what a "
        "teacher gives shows late in a training."
    )
