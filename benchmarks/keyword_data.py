"""Keywords of speech_commands.npz as the features that kws_ref_model.tflite takes, with views."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdtflite.data.splits import stratified_split
from kdtflite.files import write_atomically
from kdtflite.progress import say

__all__ = ["write_keywords"]

VIEWS = 12
RATE = 8000  # samples per second
_HELD_OUT = 0.15  # share of the speakers whose clips validate
_SILENCE = 10  # class of the background noise
_AT_ONCE = 500  # clips


def write_keywords(source: Path, target: Path, *, labeled: float | None, seed: int = 0) -> None:
    """Writes the features of all clips, the training ones in several views.

    A view is shifted by up to 0.1 s, louder or softer, and mixed with background noise; the first
    one is the clip itself. Nobody speaks in two splits. Every view is a sample, so an epoch passes
    over each clip twelve times; without labels are all views of a clip, or none.

    Args:
        source: speech_commands.npz.
        target: The .npz file to write, for `data: {name: ...}` of a recipe.
        labeled: Share of the training clips that keep their label; None for all.
        seed: Seed of the split by speakers, of the views, and of the labels to keep.
    """
    if target.is_file():
        return
    say(f"Making the features of {source.name}")
    data = np.load(source)
    random = np.random.default_rng(seed)
    audio = data["mulaw"][data["train_codes"]].astype(np.float32)
    y, speakers = data["train_labels"].astype(np.int64), data["train_speakers"]
    # Nobody speaks the noise: each of its clips is drawn by itself.
    groups = np.where(speakers == "", np.char.add("noise", np.arange(len(y)).astype(str)), speakers)
    names = random.permutation(np.unique(groups))
    validates = np.isin(groups, names[: round(_HELD_OUT * len(names))])
    trains = np.flatnonzero(~validates)
    known = trains
    if labeled is not None:
        _, kept = stratified_split(y[trains], float(labeled), seed=seed)
        known = trains[kept]
    unknown = np.setdiff1d(trains, known)
    noise = audio[trains[y[trains] == _SILENCE]]
    arrays = {
        "x_train": _compute_views(audio[known], noise, random),
        "y_train": np.tile(y[known], VIEWS),
        "x_val": compute_features(audio[validates]),
        "y_val": y[validates],
        "x_test": compute_features(data["mulaw"][data["test_codes"]].astype(np.float32)),
        "y_test": data["test_labels"].astype(np.int64),
        "class_names": data["class_names"],
    }
    if len(unknown):
        arrays["x_unlabeled"] = _compute_views(audio[unknown], noise, random)
    target.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(target) as path, open(path, "wb") as file:
        np.savez(file, **arrays)


def compute_features(audio: np.ndarray) -> np.ndarray:
    """Returns ten MFCCs of 49 windows, as MLPerf Tiny's reference computes them at 16 kHz.

    Args:
        audio: 16-bit samples, shape (clips, 8000), float32.

    Returns:
        Shape (clips, 49, 10, 1), float32.
    """
    import tensorflow as tf

    parts = []
    matrix = tf.signal.linear_to_mel_weight_matrix(40, 129, RATE, 20.0, 4000.0)
    for first in range(0, len(audio), _AT_ONCE):
        clips = audio[first : first + _AT_ONCE]
        clips = clips / np.maximum(1, clips.max(axis=1, keepdims=True))
        # Windows of 30 ms every 20 ms, with half as many samples as at 16 kHz, hence twice as loud.
        power = tf.abs(tf.signal.stft(2 * clips, 240, 160))
        log = tf.math.log(tf.tensordot(power, matrix, 1) + 1e-6)
        parts.append(tf.signal.mfccs_from_log_mel_spectrograms(log)[..., :10].numpy()[..., None])
    return np.concatenate(parts)


def _compute_views(audio: np.ndarray, noise: np.ndarray, random: np.random.Generator) -> np.ndarray:
    views = [compute_features(audio)]
    for _ in range(VIEWS - 1):
        moved = np.zeros_like(audio)
        for clip, (own, shift) in enumerate(
            zip(audio, random.integers(-RATE // 10, RATE // 10 + 1, len(audio)), strict=True)
        ):
            start, end = max(0, shift), min(RATE, RATE + shift)
            moved[clip, start:end] = own[start - shift : end - shift]
        loud = random.uniform(0.7, 1.2, (len(audio), 1))
        background = noise[random.integers(0, len(noise), len(audio))]
        mixed = loud * moved + random.uniform(0, 0.3, (len(audio), 1)) * background
        views.append(compute_features(np.clip(mixed, -32768, 32767).astype(np.float32)))
    return np.concatenate(views)
