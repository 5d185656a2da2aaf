"""losses="auto": the losses, their weights and temperature chosen by short runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kdtflite.distillation.candidates import CANDIDATES, HARD_LABELS, Candidate
from kdtflite.distillation.outputs import Task
from kdtflite.errors import ConfigurationError, DataError

__all__ = ["Auto", "Choice", "Score", "Trial", "as_auto"]


@dataclass(frozen=True)
class Score:
    """What a student scores on the validation samples.

    Attributes:
        accuracy: Share that it decides rightly.
        log_loss: Mean of -log of the probability that it gives the right class.
        samples: How many there were; None where every difference is to count.
    """

    accuracy: float
    log_loss: float
    samples: float | None = None

    @property
    def noise(self) -> float:
        """Standard error of the accuracy, √(p (1 - p) / n): less than this says nothing."""
        if not self.samples:
            return 0.0
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.samples)

    @property
    def order(self) -> tuple[float, float]:
        """Sorts scores, best last: by accuracy, and by log loss where that is the same."""
        loss = self.log_loss
        return self.accuracy, -loss if math.isfinite(loss) else -math.inf


@dataclass(frozen=True)
class Trial:
    """One short run.

    Attributes:
        candidate: Its name.
        rung: From 1; later rungs train fewer candidates for longer.
        steps: How long it trained.
        epochs: The same in passes over the training samples.
        accuracy: On the validation samples.
        log_loss: On the validation samples.
        samples: How many those were, by weight.
    """

    candidate: str
    rung: int
    steps: int
    epochs: float
    accuracy: float
    log_loss: float
    samples: float | None = None


@dataclass(frozen=True)
class Choice:
    """What was tried and what came of it; `print` shows it as a table.

    Attributes:
        chosen: Name of the candidate that is trained with.
        why: In a sentence.
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

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {**asdict(self), "trials": [asdict(trial) for trial in self.trials]}

    def __str__(self) -> str:
        width = max([len(trial.candidate) for trial in self.trials], default=0)
        lines = [f"{'Tried':<{width}}  rung  epochs  accuracy  log loss"]
        for trial in self.trials:
            lines.append(
                f"{trial.candidate:<{width}}  {trial.rung:>4}  {trial.epochs:>6.2f}  "
                f"{trial.accuracy:>8.4f}  {trial.log_loss:>8.4f}"
            )
        return "\n".join([*(lines if self.trials else []), f"Chosen: {self.chosen}. {self.why}"])


class Auto:
    """Chooses among candidates by short runs that are judged on validation samples.

    Successive halving (Jamieson & Talwalkar, arXiv 1502.07943): all candidates train shortly, the
    better half of them longer, and so on. Every rung takes the same number of steps in all, the
    last one, which decides, as many again. Each run begins with the same weights, sees the same
    batches and goes through the whole schedule of the learning rate, compressed. Hard labels alone
    are a candidate that stays to the end, and whoever is behind them after the longest runs by more
    than the standard error of their accuracy is not chosen: a student that distillation harms is
    trained without it. A difference within that error goes to the teacher, since what soft targets
    give shows late in a training, later than the runs are long.

    Args:
        candidates: What to choose among, `CANDIDATES` by default, the likeliest first: a training
            that is too short for trials of all leaves the last ones out. Hard labels alone come
            in addition where they are not among them.
        share: All runs together take at most this share of the training's steps, above 0 to 1.
        shortest: Fewest steps of a run, from 1. After fewer, candidates differ by chance: fewer of
            them with longer runs find the better one more often.

    Raises:
        ConfigurationError: Candidates of the same name, or a number out of its range.

    Example:
        >>> mine = Candidate("decoupled", lambda: [DecoupledKD()], 0.5)
        >>> Distiller(student, teacher, losses=Auto([*CANDIDATES, mine]))
    """

    def __init__(
        self,
        candidates: Sequence[Candidate] = CANDIDATES,
        *,
        share: float = 1 / 3,
        shortest: int = 30,
    ) -> None:
        others = [candidate for candidate in candidates if candidate is not HARD_LABELS]
        self.candidates = (HARD_LABELS, *others)
        names = [candidate.name for candidate in self.candidates]
        if len(set(names)) < len(names):
            raise ConfigurationError(
                f"Expected every candidate to have a name of its own. Received: "
                f"{', '.join(sorted(names))}."
            )
        if not 0 < share <= 1:
            raise ConfigurationError(f"Expected a share above 0 up to 1. Received: share={share}.")
        if shortest < 1:
            raise ConfigurationError(
                f"Expected runs of at least one step. Received: shortest={shortest}."
            )
        self.share = share
        self.shortest = shortest

    def named(self, name: str) -> Candidate:
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
        steps_an_epoch: int,
    ) -> Choice:
        """Runs the trials and returns what they say.

        Args:
            run: Trains the student by a candidate for so many steps and scores it. Called with
                the same arguments it has to give the same score.
            task: Candidates with a loss for other tasks are left out.
            steps: Steps of the training that the choice is for.
            steps_an_epoch: To state the trials' lengths in epochs.
        """
        left = [c for c in self.candidates if all(task in loss.tasks for loss in c.losses())]
        trials: list[Trial] = []
        if len(left) == 1:
            why = f"There was no other candidate for a {task} student."
            return Choice(HARD_LABELS.name, why, (), steps, 0)
        budget = int(steps * self.share)
        while len(left) > 1 and _rungs(len(left), budget)[0][1] < self.shortest:
            left.pop()
        if len(left) == 1:
            why = f"A training of {steps} steps is too short to try others: {budget} for trials."
            return Choice(HARD_LABELS.name, why, (), steps, 0)
        for rung, (size, length) in enumerate(_rungs(len(left), budget), start=1):
            # The hard labels come first and stay, whatever their place.
            left = [HARD_LABELS, *left[1:size]]
            scores = {candidate.name: run(candidate, length) for candidate in left}
            trials += [
                Trial(name, rung, length, length / steps_an_epoch, **asdict(score))
                for name, score in scores.items()
            ]
            # Stable: of equals, the one that stands first in the list.
            ranked = sorted(left[1:], key=lambda c: scores[c.name].order, reverse=True)
            left = [HARD_LABELS, *ranked]
        best, hard = left[1].name, HARD_LABELS.name
        good = _good(scores[best], scores[hard])
        spent = sum(trial.steps for trial in trials)
        why = _why(best, scores, trials[-1], good)
        return Choice(best if good else hard, why, tuple(trials), steps, spent)


def as_auto(losses: Any, hard_label_weight: Any, loss_weights: Any) -> Auto | None:
    """Returns the `Auto` that a Distiller's `losses` ask for, or None where they name losses.

    Raises:
        ConfigurationError: Another word than "auto", or weights beside it.
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


def _rungs(candidates: int, budget: int) -> list[tuple[int, int]]:
    """Returns how many candidates each rung trains, down to two, and for how many steps each."""
    sizes = [candidates]
    while sizes[-1] > 2:
        sizes.append(max(2, math.ceil(sizes[-1] / 2)))
    shares = [budget // (len(sizes) + 1)] * (len(sizes) - 1)
    shares.append(2 * budget // (len(sizes) + 1))
    return [(size, share // size) for size, share in zip(sizes, shares, strict=True)]


def _good(own: Score, hard: Score) -> bool:
    """Returns whether a candidate is ahead of the hard labels, or behind by noise alone."""
    if own.order > hard.order:
        return True
    behind = hard.accuracy - own.accuracy
    return behind < hard.noise and math.isfinite(own.log_loss)


def _why(best: str, scores: dict[str, Score], last: Trial, good: bool) -> str:
    own, hard = scores[best], scores[HARD_LABELS.name]
    after = f"after {last.epochs:.3g} epochs"
    if own.accuracy == hard.accuracy:
        compared = (
            f"as accurate on the validation samples as hard labels alone {after} "
            f"({own.accuracy:.2%}), with a log loss of {own.log_loss:.4f} against "
            f"{hard.log_loss:.4f}"
        )
    else:
        word = "more" if own.accuracy > hard.accuracy else "less"
        compared = (
            f"{word} accurate on the validation samples than hard labels alone {after} "
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
