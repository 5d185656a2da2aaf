"""Which models become a quantization-aware student and a proven integer file, beside TFMOT alone.

    python benchmarks/coverage.py            # goes on where it was stopped
    python benchmarks/coverage.py --only "layer.Conv" --again

Each case runs in a process of its own, so that a crash is one row. Its result is kept in the work
folder; the table is written anew after each.
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
LIMIT = 900  # seconds a case
SAMPLES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--again", action="store_true", help="run cases that have a result, too")
    parser.add_argument("--failed", action="store_true", help="run the cases that failed again")
    parser.add_argument("--without-tfmot", action="store_true", help="leave that column out")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "kdtflite_coverage"
    )
    parser.add_argument("--json", type=Path, default=RESULT, help="the table goes beside as .md")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run(arguments.case, tfmot=not arguments.without_tfmot)))
        return
    from coverage_cases import cases

    names = list(cases())
    wanted = [name for name in names if (arguments.only or "") in name]
    arguments.work.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(wanted, start=1):
        path = arguments.work / f"{re.sub(r'[^A-Za-z0-9.]+', '_', name)}.json"
        known = json.loads(path.read_text()) if path.exists() else None
        if known and not arguments.again and (passed(known) or not arguments.failed):
            continue
        result = in_a_process(name, arguments.without_tfmot)
        write_json(path, result, overwrite=True)
        error = f" ({result['error'][:160]})" if result.get("error") else ""
        say(f"{i} of {len(wanted)}: {name}: {'pass' if passed(result) else 'FAIL'}{error}")
    found = {}
    for name in names:
        path = arguments.work / f"{re.sub(r'[^A-Za-z0-9.]+', '_', name)}.json"
        if path.exists():
            found[name] = json.loads(path.read_text())
    write_json(arguments.json, found, overwrite=True)
    write_text(arguments.json.with_suffix(".md"), as_markdown(found), overwrite=True)
    failed = [name for name, result in found.items() if not passed(result)]
    say(f"{len(found) - len(failed)} of {len(found)} pass; failed: {', '.join(failed) or 'none'}")
    sys.exit(1 if failed or len(found) < len(names) else 0)


def passed(result: dict[str, Any]) -> bool:
    """Says whether kdtflite did all that is asked of a row."""
    return all(result.get(key) for key in ("wraps", "gradients", "proven", "xnnpack"))


def in_a_process(name: str, without_tfmot: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", name]
    if without_tfmot:
        command.append("--without-tfmot")
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


def run(name: str, *, tfmot: bool) -> dict[str, Any]:
    """Takes one model the whole way and says how far it came."""
    import tf_keras as keras
    from coverage_cases import cases

    import kdtflite
    from kdtflite.models.as_tf_keras import as_tf_keras

    keras.utils.set_random_seed(0)
    model = cases()[name]()
    result: dict[str, Any] = {}
    try:
        float_model = as_tf_keras(model)
        data = samples(float_model)
        aware = kdtflite.quantize_aware(model, data)
        result["wraps"] = True
        layers = aware.quantization.layers
        result["layers"] = len(layers)
        result["trained"] = sum(layer.how != "calibrated" for layer in layers)
        result["gradients"] = finite_gradients(aware, float_model, data)
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
        result["tfmot"] = tfmot_alone(model, name)
    return result


def samples(model: Any) -> Any:
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
    """Says whether a network takes pixels 0..255, and scales them itself."""
    return any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in model.layers)


def finite_gradients(aware: Any, teacher: Any, data: Any) -> bool:
    """Distils one step by kdtflite's Distiller, and looks at every gradient of such a step."""
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


def tfmot_alone(model: Any, name: str) -> str:
    """Returns "yes", or where TFMOT and the converter stop with this model."""
    from kdtflite.conversion.integer_proof import find_floats
    from kdtflite.litemodel import LiteModel
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
        data = samples(as_tf_keras(model))
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
    """Returns the results as tables, one a kind of case."""
    lines = ["# Coverage", "", f"`python benchmarks/coverage.py`; {SAMPLES} random samples.", ""]
    ours = sum(passed(result) for result in found.values())
    theirs = sum(result.get("tfmot") == "yes" for result in found.values())
    lines.append(f"kdtflite passes {ours} of {len(found)} rows, TFMOT alone {theirs}.")
    lines += [
        "",
        "trained: layers trained quantization-aware, or folded into such ones. steps: the",
    ]
    lines += [
        "largest difference of the file from the fake-quantized model, in steps of the output."
    ]
    groups: dict[str, list[str]] = {}
    for name in found:
        kind = name.rsplit(".", 1)[0] if name.startswith(("tf_keras.", "keras.", "layer.")) else ""
        groups.setdefault(kind, []).append(name)
    for kind, names in groups.items():
        title = {"layer": "One layer", "": "Small models"}.get(kind, kind)
        lines += ["", f"## {title}", ""]
        lines.append("| | TFMOT alone | wraps | gradients | integer | runs | trained | steps |")
        lines.append("|---|---|---|---|---|---|---|---|")
        for name in names:
            lines.append(row(name.removeprefix(f"{kind}."), found[name]))
    return "\n".join(lines) + "\n"


def row(name: str, result: dict[str, Any]) -> str:
    def mark(key: str) -> str:
        return "yes" if result.get(key) else "**no**"

    share = f"{result['trained']} of {result['layers']}" if "layers" in result else ""
    steps = f"{result['steps']:.1f}" if result.get("steps") is not None else ""
    tfmot = result.get("tfmot", "")
    if ":" in tfmot:
        tfmot = tfmot.split(":")[0]
    cells = [name, tfmot, mark("wraps"), mark("gradients"), mark("proven"), mark("xnnpack")]
    return f"| {' | '.join([*cells, share, steps])} |"


if __name__ == "__main__":
    main()
