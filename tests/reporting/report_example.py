"""A report such as a run on the digits writes, for tests of how it is shown.

The numbers are of a real run's size but written by hand: nothing here was measured.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

EPOCHS = 12


def example_report() -> dict[str, Any]:
    """Returns a full report, new at every call."""
    return {
        "version": 1,
        "name": "digits",
        "created": "2026-03-14T09:26:53+00:00",
        "seed": 1,
        "recipe": {
            "name": "digits",
            "data": {"dataset": "digits", "validation": 0.2},
            "teacher": {"epochs": EPOCHS, "filters": [32, 64]},
            "distillation": {
                "losses": [{"soft_targets": {"temperature": 4.0}}],
                "hard_label_weight": 0.1,
            },
        },
        "versions": {
            "python": "3.11.7",
            "kdtflite": "0.1.0",
            "tensorflow": "2.21.0",
            "tensorflow-model-optimization": "0.8.1",
            "ai-edge-litert": "2.3.0",
        },
        "machine": {"cpu": "Example CPU 2.4 GHz", "cores": 2, "os": "Linux 6.1"},
        "seconds": {"data": 0.4, "teacher": 31.2, "distilled": 48.0, "distilled_int8": 75.5},
        "dataset": {
            "name": "digits",
            "description": "8×8 gray pictures of handwritten digits",
            "license": "CC BY 4.0",
            "class_names": [str(digit) for digit in range(10)],
            "splits": {
                "train": {"samples": 1078},
                "validation": {"samples": 269},
                "test": {"samples": 450},
            },
            "sample_shape": [8, 8, 1],
        },
        "models": _make_models(),
        "training": {
            "teacher": _stage(0.9, []),
            "hard_labels": _stage(1.4, []),
            "distilled": _stage(
                2.2, ["hard_labels_loss", "soft_targets_loss", "regularization_loss"]
            ),
            "distilled_int8": _stage(1.1, ["hard_labels_loss", "soft_targets_loss"]),
        },
        "choice": _make_choice(),
        "selection": _make_selection(),
        "comparisons": [
            _compare("distilled_int8", "ptq_int8", 8 / 450, -0.0022, 0.0378),
            _compare("distilled_int8", "teacher", -9 / 450, -0.0333, -0.0067),
            _compare("distilled", "hard_labels", 5 / 450, -0.0067, 0.0289),
            _compare("distilled_ptq_int8", "ptq_int8", 3 / 450, -0.0111, 0.0244),
            _compare("distilled_int8", "distilled_ptq_int8", 5 / 450, 0.0022, 0.0222),
        ],
        "confusion": {"distilled_int8": _confusion(10)},
        "per_class": {"distilled_int8": _per_class(_confusion(10))},
        "samples": _make_samples(),
        "proof": {
            "fully_integer": True,
            "operators": [
                _operator(0, "CONV_2D", ["int8", "int8", "int32"], "conv2d"),
                _operator(1, "MAX_POOL_2D", ["int8"], "max_pooling2d"),
                _operator(2, "CONV_2D", ["int8", "int8", "int32"], "conv2d_1"),
                _operator(3, "MEAN", ["int8", "int32"], "global_average_pooling2d"),
                _operator(4, "FULLY_CONNECTED", ["int8", "int8", "int32"], "dense"),
            ],
            "tensor_dtypes": {"int8": 9, "int32": 4},
            "input": {
                "name": "serving_default_image:0",
                "dtype": "int8",
                "scale": 0.003921568859368563,
                "zero_point": -128,
                "shape": [1, 8, 8, 1],
            },
            "output": {
                "name": "StatefulPartitionedCall:0",
                "dtype": "int8",
                "scale": 0.14725,
                "zero_point": 7,
                "shape": [1, 10],
            },
            "invoked_with": "XNNPACK",
            "float_tensors": 0,
        },
        "quantization": [
            {"layer": "conv2d", "class": "Conv2D", "how": "trained", "why": ""},
            {
                "layer": "batch_normalization",
                "class": "BatchNormalization",
                "how": "folded",
                "why": "into conv2d",
            },
            {"layer": "conv2d_1", "class": "Conv2D", "how": "trained", "why": ""},
            {
                "layer": "global_average_pooling2d",
                "class": "GlobalAveragePooling2D",
                "how": "calibrated",
                "why": "no weights to train; range from 200 samples",
            },
            {"layer": "dense", "class": "Dense", "how": "trained", "why": ""},
        ],
        "parity": {
            "samples": 450,
            "argmax_agreement": 0.9978,
            "largest_difference_steps": 2.0,
            "mean_difference_steps": 0.113,
            "kernels": "XNNPACK",
        },
        "reproduce": {
            "command": "kdtflite run digits --seed 1",
            "artifacts": [
                {"file": model["file"], "sha256": model["sha256"], "bytes": model["bytes"]}
                for model in _make_models()
            ],
        },
    }


def many_classes_report(classes: int) -> dict[str, Any]:
    """Returns the report with another number of classes."""
    report = example_report()
    report["dataset"]["class_names"] = [f"class number {place}" for place in range(classes)]
    report["confusion"] = {"distilled_int8": _confusion(classes)}
    report["per_class"] = {"distilled_int8": _per_class(_confusion(classes))}
    return report


def _make_models() -> list[dict[str, Any]]:
    hard, distilled = "Student, hard labels", "Student, distilled"
    rows = [
        ("teacher", "Teacher (float)", "float32", 1_214_872, 446, 0.412, 0),
        ("hard_labels", f"{hard} (float)", "float32", 23_480, 433, 0.0341, 0),
        ("distilled", f"{distilled} (float)", "float32", 23_480, 438, 0.0339, 0),
        ("ptq_int8", f"{hard}, PTQ (int8)", "int8", 11_240, 429, 0.0187, 4),
        ("distilled_int8", f"{distilled}, QAT (int8)", "int8", 11_384, 437, 0.0186, 3),
        ("distilled_ptq_int8", f"{distilled}, PTQ (int8)", "int8", 11_240, 432, 0.0187, 2),
    ]
    models = []
    for key, label, kind, size, right, p50, ties in rows:
        accuracy = right / 450
        models.append(
            {
                "key": key,
                "label": label,
                "format": kind,
                "file": f"{key}.tflite",
                "sha256": hashlib.sha256(key.encode()).hexdigest(),
                "bytes": size,
                "parameters": 302_154 if key == "teacher" else 4_906,
                "macs": 4_127_360 if key == "teacher" else 98_432,
                "accuracy": accuracy,
                "accuracy_if_ties_lost": (right - ties // 2) / 450,
                "accuracy_if_ties_won": (right + ties - ties // 2) / 450,
                "ties": ties,
                "macro_f1": accuracy - 0.0007,
                "log_loss": round(2.1 * (1 - accuracy) + 0.02, 4),
                "latency_ms": {
                    "p50": p50,
                    "p90": round(p50 * 1.08, 4),
                    "p99": round(p50 * 1.41, 4),
                    "threads": 1,
                    "delegate": "XNNPACK",
                },
                "arena_bytes": 41_984 if kind == "float32" else 10_752,
            }
        )
    return models


def _make_selection() -> dict[str, Any]:
    labels = {model["key"]: model["label"] for model in _make_models()}
    # Right of 269 validation samples, and the difference from the most accurate file.
    rows = [
        ("ptq_int8", 258, -0.0223, 0.0111, -0.0446, 0.0),
        ("distilled_int8", 264, 0.0, 0.0, 0.0, 0.0),
        ("distilled_ptq_int8", 261, -0.0112, 0.0064, -0.026, 0.0),
    ]
    return {
        "chosen": "distilled_int8",
        "recommended": True,
        "why": "It is the most accurate file on 269 validation samples.",
        "majority": 27 / 269,
        "samples": 269,
        "files": [
            {
                "key": key,
                "label": labels[key],
                "accuracy": right / 269,
                "bytes": 11_384 if key == "distilled_int8" else 11_240,
                "behind": {
                    "difference": difference,
                    "standard_error": error,
                    "low": low,
                    "high": high,
                    "samples": 269,
                },
            }
            for key, right, difference, error, low, high in rows
        ],
    }


def _compare(first: str, second: str, difference: float, low: float, high: float) -> dict[str, Any]:
    # A 95 % interval is 3.92 standard errors wide.
    return {
        "first": first,
        "second": second,
        "difference": difference,
        "standard_error": (high - low) / 3.92,
        "low": low,
        "high": high,
        "samples": 450,
    }


def _make_choice() -> dict[str, Any]:
    rows = [
        ("hard labels alone", 1, 0.742, 0.91),
        ("soft targets, T=1, no hard labels", 1, 0.751, 0.88),
        ("soft targets, T=4, hard labels 0.1", 1, 0.683, 1.07),
        ("hard labels alone", 2, 0.886, 0.402),
        ("soft targets, T=1, no hard labels", 2, 0.903, 0.377),
    ]
    return {
        "chosen": "soft targets, T=1, no hard labels",
        "why": "It was more accurate.",
        "baseline": "hard labels alone",
        "steps": 960,
        "trial_steps": 320,
        "trials": [
            {
                "candidate": candidate,
                "rung": rung,
                "steps": (53, 80)[rung - 1],
                "epochs": (0.66, 1.0)[rung - 1],
                "accuracy": accuracy,
                "log_loss": log_loss,
            }
            for candidate, rung, accuracy, log_loss in rows
        ],
    }


def _stage(start: float, terms: list[str]) -> dict[str, Any]:
    steps = range(EPOCHS)
    loss = [round(start * math.exp(-0.33 * step) + 0.05, 5) for step in steps]
    history: dict[str, list[float]] = {
        "loss": loss,
        "accuracy": [round(1 - 0.6 * math.exp(-0.45 * step), 5) for step in steps],
        "val_loss": [round(value * 1.15 + 0.02 * (step % 3), 5) for step, value in enumerate(loss)],
        "val_accuracy": [round(0.985 - 0.6 * math.exp(-0.42 * step), 5) for step in steps],
    }
    for place, term in enumerate(terms):
        history[term] = [round(value * (0.62, 0.3, 0.02)[place], 5) for value in loss]
    history["learning_rate"] = [
        round(1e-3 * (1 + math.cos(math.pi * s / EPOCHS)) / 2, 7) for s in steps
    ]
    return {"epochs": [step + 1 for step in steps], "history": history}


def _confusion(classes: int) -> list[list[int]]:
    matrix = np.diag([41 + place % 5 for place in range(classes)])
    if classes > 8:
        matrix[8, 1] = 5
        matrix[3, 8] = 3
        matrix[9, 3 if classes == 10 else classes // 2] = 2
    return matrix.tolist()


def _per_class(matrix: list[list[int]]) -> dict[str, list[Any]]:
    counts = np.array(matrix, dtype=float)
    precision = np.diag(counts) / counts.sum(axis=0)
    recall = np.diag(counts) / counts.sum(axis=1)
    f1 = 2 * precision * recall / (precision + recall)
    return {
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "support": counts.sum(axis=1).astype(int).tolist(),
    }


# One of sixteen gray values per pixel as hexadecimal digits: an "8" and a "3" as they look at 8×8.
_EIGHT = "005dfc5000fa3fa000fb0fb0005ff900009fff5002f809f200fa0bf0005ffd40"
_THREE = "007ffb2000b93fb000000fa00007fe3000003fd0000009f20a906fe002cffb30"


def gray_image(pixels: str = _EIGHT) -> list[list[float]]:
    """Returns an 8×8 picture with values from 0 to 1."""
    return [[int(pixel, 16) / 15 for pixel in pixels[row : row + 8]] for row in range(0, 64, 8)]


def _make_samples() -> list[dict[str, Any]]:
    answers = [
        # index, image, label, teacher, distilled student, int8
        (311, _THREE, 3, 3, 3, 3),
        (12, _EIGHT, 8, 8, 8, 1),
        (97, _THREE, 3, 3, 8, 8),
        (204, _EIGHT, 8, 8, 8, 8),
        (340, _THREE, 3, 3, 3, 3),
        (401, _EIGHT, 8, 8, 8, 8),
    ]
    return [
        {
            "index": index,
            "image": gray_image(image),
            "label": label,
            "predictions": {
                "teacher": {"class": teacher, "confidence": 0.991},
                "distilled": {"class": student, "confidence": 0.86},
                "distilled_int8": {"class": lite, "confidence": 0.57},
            },
        }
        for index, image, label, teacher, student, lite in answers
    ]


def _operator(index: int, name: str, inputs: list[str], layer: str) -> dict[str, Any]:
    return {"index": index, "name": name, "inputs": inputs, "outputs": ["int8"], "layer": layer}
