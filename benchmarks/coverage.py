"""Tests which models become a proven integer file, with kdtflite and with TFMOT alone.

    python benchmarks/coverage.py            # resumes where it stopped
    python benchmarks/coverage.py --only "layer.Conv" --again

Whole networks are also trained from a fresh start, 20 steps of plain SGD: in float, and
quantization-aware with the same batches.

Each case runs in its own process, so that a crash costs only its row. Results are kept in the work
folder, and the table is rewritten after each case.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from kdtflite.files import write_json, write_text
from kdtflite.progress import say

RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "coverage.json"
LIMIT = 900  # seconds per case
SAMPLES = 32
FRESH_STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="only cases whose name contains this")
    parser.add_argument("--again", action="store_true", help="also run cases that have a result")
    parser.add_argument("--failed", action="store_true", help="run the cases that failed again")
    parser.add_argument("--without-tfmot", action="store_true", help="skip TFMOT")
    parser.add_argument("--without-fresh", action="store_true", help="skip the fresh start")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "kdtflite_coverage"
    )
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; its table is written next to it"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        result = run_case(arguments.case, tfmot=not arguments.without_tfmot)
        if not arguments.without_fresh:
            result.update(run_fresh_start(arguments.case))
        print(json.dumps(result))
        return
    from coverage_cases import list_cases

    names = list(list_cases())
    wanted = [name for name in names if (arguments.only or "") in name]
    arguments.work.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(wanted, start=1):
        path = arguments.work / f"{re.sub(r'[^A-Za-z0-9.]+', '_', name)}.json"
        known = json.loads(path.read_text()) if path.exists() else None
        if known and not arguments.again and (has_passed(known) or not arguments.failed):
            continue
        skipped = {
            "--without-tfmot": arguments.without_tfmot,
            "--without-fresh": arguments.without_fresh,
        }
        result = run_in_process(name, [option for option, given in skipped.items() if given])
        write_json(path, result, overwrite=True)
        error = f" ({result['error'][:160]})" if result.get("error") else ""
        say(f"{i} of {len(wanted)}: {name}: {'pass' if has_passed(result) else 'FAIL'}{error}")
    found = {}
    for name in names:
        path = arguments.work / f"{re.sub(r'[^A-Za-z0-9.]+', '_', name)}.json"
        if path.exists():
            found[name] = json.loads(path.read_text())
    write_json(arguments.json, found, overwrite=True)
    write_text(arguments.json.with_suffix(".md"), as_markdown(found), overwrite=True)
    failed = [name for name, result in found.items() if not has_passed(result)]
    say(f"{len(found) - len(failed)} of {len(found)} pass; failed: {', '.join(failed) or 'none'}")
    sys.exit(1 if failed or len(found) < len(names) else 0)


def has_passed(result: dict[str, Any]) -> bool:
    """Returns whether kdtflite passed every check of a row."""
    checks = ("wraps", "gradients", "proven", "xnnpack")
    return all(result.get(key) for key in checks) and result.get("fresh", {}).get("learns", True)


def run_in_process(name: str, options: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", name, *options]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {LIMIT} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        return {"error": f"process ended with {done.returncode}: {last[:300]}"}
    return {**json.loads(lines[-1]), "seconds": round(time.monotonic() - start)}


def run_case(name: str, *, tfmot: bool) -> dict[str, Any]:
    """Takes one model through all steps and returns how far it came."""
    import tf_keras as keras
    from coverage_cases import list_cases

    import kdtflite
    from kdtflite.models.as_tf_keras import as_tf_keras

    keras.utils.set_random_seed(0)
    model = list_cases()[name]()
    result: dict[str, Any] = {}
    try:
        float_model = as_tf_keras(model)
        data = make_samples(float_model)
        aware = kdtflite.quantize_aware(model, data)
        result["wraps"] = True
        layers = aware.quantization.layers
        result["layers"] = len(layers)
        result["trained"] = sum(layer.how != "calibrated" for layer in layers)
        result["gradients"] = has_finite_gradients(aware, float_model, data)
        lite = kdtflite.convert(aware, data, progress=False)
        proof = kdtflite.prove_fully_integer(lite)
        result["proven"] = True
        result["xnnpack"] = lite.interpreter(xnnpack=True) is not None
        result["kernels"] = proof.invoked_with
        result["bytes"] = len(lite.content)
        parity = kdtflite.compare(aware, lite, data)
        result["steps"] = parity.largest_difference_steps
        result["mean_steps"] = parity.mean_difference_steps
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    if tfmot:
        result["tfmot"] = run_tfmot_alone(model, name)
    return result


def run_fresh_start(name: str) -> dict[str, Any]:
    """Trains a new network in float and quantization-aware; returns both courses of the loss."""
    import tf_keras as keras
    from coverage_cases import list_fresh_cases

    import kdtflite
    from kdtflite.models.as_tf_keras import as_tf_keras

    cases = list_fresh_cases()
    if name not in cases:
        return {}
    keras.utils.set_random_seed(0)
    model = as_tf_keras(cases[name]())
    data = make_samples(model)
    labels = np.arange(SAMPLES) % model.output_shape[-1]
    fresh: dict[str, Any] = {"steps": FRESH_STEPS}
    try:
        aware = kdtflite.quantize_aware(model, data)
        fresh["float"] = train_from_scratch(model, data, labels)
        fresh["aware"] = train_from_scratch(aware, data, labels)
        fresh["finite"] = all(np.isfinite(weight).all() for weight in aware.get_weights())
        gains = {key: fresh[key][0] - fresh[key][-1] for key in ("float", "aware")}
        # Half of what the float model gains, where it gains anything to speak of.
        fresh["learns"] = fresh["finite"] and gains["aware"] > 0.5 * gains["float"] - 0.1
    except Exception as error:
        fresh["learns"] = False
        fresh["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    return {"fresh": fresh}


def train_from_scratch(model: Any, data: Any, labels: Any) -> list[float]:
    """Returns the mean loss of the first four steps and that of the last four."""
    import tf_keras as keras

    from kdtflite.models import find_output_kind

    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=find_output_kind(model) == "logits"
    )
    model.compile(keras.optimizers.SGD(0.01), loss)
    losses = []
    for step in range(FRESH_STEPS):
        part = slice(0, SAMPLES // 2) if step % 2 else slice(SAMPLES // 2, SAMPLES)
        batch = {k: v[part] for k, v in data.items()} if isinstance(data, dict) else data[part]
        losses.append(float(model.train_on_batch(batch, labels[part])))
    return [round(float(np.mean(losses[:4])), 4), round(float(np.mean(losses[-4:])), 4)]


def make_samples(model: Any) -> Any:
    random = np.random.default_rng(0)
    found = {}
    for input_name, tensor in zip(model.input_names, model.inputs, strict=True):
        shape = (SAMPLES, *tensor.shape[1:])
        if tensor.dtype.is_floating:
            top = 255.0 if has_scaling(model) else 1.0
            found[input_name] = random.uniform(0, top, shape).astype(np.float32)
        else:
            found[input_name] = random.integers(0, 20, shape).astype(tensor.dtype.name)
    return found if len(found) > 1 else next(iter(found.values()))


def has_scaling(model: Any) -> bool:
    """Returns whether a network takes pixels from 0 to 255 and scales them itself."""
    return any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in model.layers)


def has_finite_gradients(aware: Any, teacher: Any, data: Any) -> bool:
    """Distills one step with kdtflite's Distiller and checks every gradient of such a step."""
    import tensorflow as tf
    import tf_keras as keras

    import kdtflite

    batch = tf.nest.map_structure(lambda x: tf.constant(x[:8]), data)
    targets = tf.nn.softmax(teacher(batch, training=False))
    with tf.GradientTape() as tape:
        logits = aware(batch, training=True)
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)(targets, logits)
    gradients = tape.gradient(loss, aware.trainable_variables)
    for variable, gradient in zip(aware.trainable_variables, gradients, strict=True):
        if gradient is None:
            raise ValueError(f"no gradient for {variable.name}")
        dense = tf.convert_to_tensor(gradient)
        if not np.isfinite(dense.numpy()).all():
            raise ValueError(f"the gradient of {variable.name} is not finite")
    before = aware.get_weights()
    distiller = kdtflite.Distiller(
        aware, teacher, losses=[kdtflite.losses.SoftTargets()], hard_label_weight=0.0
    )
    distiller.compile(keras.optimizers.SGD(1e-4))
    distiller.fit(batch, np.zeros(8, np.int64), batch_size=8, verbose=0)
    finite = all(np.isfinite(weight).all() for weight in aware.get_weights())
    aware.set_weights(before)
    return finite


def run_tfmot_alone(model: Any, name: str) -> str:
    """Returns "yes", or the point at which TFMOT or the converter fails with this model."""
    from kdtflite.conversion.integer_proof import find_floats
    from kdtflite.lite.model import LiteModel
    from kdtflite.models.as_tf_keras import as_tf_keras
    from kdtflite.runtime import import_tfmot

    if name.startswith("keras."):
        return "refused: Keras 3"
    tfmot = import_tfmot()
    import tensorflow as tf

    try:
        wrapped = tfmot.quantization.keras.quantize_model(model)
    except Exception as error:
        return f"refused: {' '.join(str(error).split())[:80]}"
    try:
        converter = tf.lite.TFLiteConverter.from_keras_model(wrapped)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        data = make_samples(as_tf_keras(model))
        names = wrapped.input_names
        given = data if isinstance(data, dict) else {names[0]: data}
        converter.representative_dataset = lambda: (
            [np.asarray(given[key][i : i + 1]) for key in given] for i in range(SAMPLES)
        )
        lite = LiteModel(converter.convert())
        if find_floats(lite):
            return "float left"
        lite.interpreter(xnnpack=True).invoke()
    except Exception as error:
        return f"not converted: {' '.join(str(error).split())[:80]}"
    return "yes"


def as_markdown(found: dict[str, Any]) -> str:
    """Returns the results as tables, one per kind of case."""
    lines = ["# Coverage", "", f"`python benchmarks/coverage.py`; {SAMPLES} random samples.", ""]
    ours = sum(has_passed(result) for result in found.values())
    theirs = sum(result.get("tfmot") == "yes" for result in found.values())
    lines.append(f"kdtflite passes {ours} of {len(found)} rows, TFMOT alone {theirs}.")
    lines += [
        "",
        "trained: layers trained quantization-aware, or folded into such layers. steps: the",
    ]
    lines += [
        "largest difference of the file from the fake-quantized model, in steps of the output.",
        f"fresh: whether a new network learns in {FRESH_STEPS} steps of SGD as in float, with the",
        "loss of the first and last four steps, float and quantization-aware.",
    ]
    groups: dict[str, list[str]] = {}
    for name in found:
        kind = name.rsplit(".", 1)[0] if name.startswith(("tf_keras.", "keras.", "layer.")) else ""
        groups.setdefault(kind, []).append(name)
    for kind, names in groups.items():
        title = {"layer": "One layer", "": "Small models"}.get(kind, kind)
        lines += ["", f"## {title}", ""]
        columns = ["TFMOT alone", "wraps", "gradients", "integer", "runs", "trained", "steps"]
        columns += ["fresh", "float loss", "quantization-aware loss"]
        lines.append(f"| | {' | '.join(columns)} |")
        lines.append("|---" * (len(columns) + 1) + "|")
        for name in names:
            lines.append(format_row(name.removeprefix(f"{kind}."), found[name]))
    return "\n".join(lines) + "\n"


def format_row(name: str, result: dict[str, Any]) -> str:
    def mark(key: str) -> str:
        return "yes" if result.get(key) else "**no**"

    share = f"{result['trained']} of {result['layers']}" if "layers" in result else ""
    steps = f"{result['steps']:.1f}" if result.get("steps") is not None else ""
    tfmot = result.get("tfmot", "")
    if ":" in tfmot:
        tfmot = tfmot.split(":")[0]
    cells = [name, tfmot, mark("wraps"), mark("gradients"), mark("proven"), mark("xnnpack")]
    fresh = result.get("fresh")
    courses = [
        f"{fresh[key][0]:.2f} → {fresh[key][1]:.2f}" if fresh and key in fresh else ""
        for key in ("float", "aware")
    ]
    learns = "" if fresh is None else "yes" if fresh["learns"] else "**no**"
    return f"| {' | '.join([*cells, share, steps, learns, *courses])} |"


if __name__ == "__main__":
    main()
