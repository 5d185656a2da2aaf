"""The Distiller on two replicas, in one process and in two, against one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

PROGRAM = Path(__file__).parent / "distributed_training.py"
REPLICATED = ["mirrored", "worker0", "worker1"]


def start(mode, file, config=None):
    threads = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    # Two replicas are two CPUs here, whatever else there is.
    environment = {**os.environ, **threads, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TF_CONFIG", None)
    if config is not None:
        environment["TF_CONFIG"] = json.dumps(config)
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), mode, str(file)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights by training and number, of one device and of each way to have two replicas."""
    folder = tmp_path_factory.mktemp("distributed")
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("localhost", 0))
    addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    results = {}
    for group in (["one"], ["mirrored"], ["worker0", "worker1"]):
        processes = {}
        for name in group:
            config = None
            if name.startswith("worker"):
                task = {"type": "worker", "index": int(name[-1])}
                config = {"cluster": {"worker": addresses}, "task": task}
            mode = name.rstrip("01")
            processes[name] = start(mode, folder / f"{name}.npz", config)
        for name, process in processes.items():
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors[-3000:]
            with np.load(folder / f"{name}.npz") as file:
                results[name] = dict(file)
    return results


def of(trained, name, training):
    return [values for key, values in trained[name].items() if key.startswith(f"{training}/")]


@pytest.mark.parametrize("name", ["one", *REPLICATED])
def test_a_step_takes_the_mean_over_the_whole_batch_however_unevenly_it_is_shared(trained, name):
    # Softmax regression in float64: the gradient of a cross entropy by the logits is p - target.
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (13, 4)), rng.integers(0, 3, 13)
    weight = rng.uniform(0.2, 3.0, 13)[:5, None]
    x, y = x[:5].astype(np.float32).astype(np.float64), y[:5]
    kernel = np.linspace(-0.5, 0.5, 12).reshape(4, 3)
    taught = softmax(
        x @ np.linspace(1.0, -1.0, 12).reshape(4, 3) + np.array([0.1, 0.0, -0.1]), axis=1
    )
    p = softmax(x @ kernel, axis=1)
    by_logits = weight * (0.3 * (p - np.eye(3)[y]) + 0.7 * (p - taught)) / 5
    expected = kernel - 0.5 * x.T @ by_logits, -0.5 * by_logits.sum(axis=0)
    for given, wanted in zip(of(trained, name, "linear"), expected, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", REPLICATED)
@pytest.mark.parametrize(
    ("training", "tolerance"),
    # A value on the edge between two steps of fake quantization may fall either way.
    [("adapted", 1e-5), ("normalized", 1e-3)],
)
def test_replicas_end_with_the_weights_of_one_device(trained, name, training, tolerance):
    one, several = of(trained, "one", training), of(trained, name, training)
    assert len(one) == len(several) >= 6
    for expected, given in zip(one, several, strict=True):
        np.testing.assert_allclose(given, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", REPLICATED)
def test_trials_score_as_on_one_device(trained, name):
    (one, *weights), (several, *others) = of(trained, "one", "chosen"), of(trained, name, "chosen")
    assert one.shape == several.shape == (5, 3)
    np.testing.assert_array_equal(several[:, 2], np.full(5, 13.0))
    np.testing.assert_allclose(several, one, rtol=1e-5)
    for expected, given in zip(weights, others, strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


def test_both_workers_hold_the_same_weights_to_the_bit(trained):
    for training in ("linear", "adapted", "chosen", "normalized"):
        one, other = of(trained, "worker0", training), of(trained, "worker1", training)
        for mine, yours in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, yours)


@pytest.mark.parametrize("name", REPLICATED)
def test_statistics_of_each_replica_s_own_make_another_training(trained, name):
    one, several = of(trained, "one", "apart"), of(trained, name, "apart")
    assert max(np.abs(a - b).max() for a, b in zip(one, several, strict=True)) > 5e-3
