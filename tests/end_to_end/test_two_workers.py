"""`kdtflite run` in two processes over loopback, of which one is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from kdtflite.pipeline.run import RUN_FILES
from kdtflite.reporting.variants import TRAINING_STAGES

OTHER_STAGES = TRAINING_STAGES.keys() - {"teacher", "distilled", "distilled_qat"}

RECIPE = """
name: two
seed: 7
data: {name: digits}
teacher:
  architecture: convnet
  widths: [4, 8]
  training: {epochs: 3, batch_size: 256, learning_rate: 0.01}
student: {architecture: depthwise, widths: [4, 4]}
distillation:
  epochs: 3
  batch_size: 256
  learning_rate: 0.01
  losses: [{name: soft_targets, temperature: 4.0}]
  hard_label_weight: 0.1
quantization: {epochs: 1, batch_size: 256, learning_rate: 0.001}
variants: [distilled_int8]  # the baseline trains as the teacher does
conversion: {representative_samples: 32}
"""


class Workers:
    """Two processes of the same command."""

    def __init__(self, folder, strategies=("auto", "auto")):
        sockets = [socket.socket() for _ in strategies]
        for each in sockets:
            each.bind(("localhost", 0))
        addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
        for each in sockets:
            each.close()
        (folder / "recipe.yaml").write_text(RECIPE)
        self.logs = [folder / f"worker{index}.txt" for index in range(len(strategies))]
        self.processes = []
        for index, strategy in enumerate(strategies):
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            threads = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
            command = ["run", "recipe.yaml", "--output", "run", "--strategy", strategy]
            with open(self.logs[index], "w") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "kdtflite", *command],
                        cwd=folder,
                        env={**os.environ, **threads, "TF_CONFIG": json.dumps(config)},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def said(self, index):
        return self.logs[index].read_text()

    def wait_for(self, index, line):
        until = time.monotonic() + 400
        while line not in self.said(index):
            assert self.processes[index].poll() is None, self.said(index)
            assert time.monotonic() < until, self.said(index)
            time.sleep(0.05)

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*arguments):
        started.append(Workers(tmp_path, *arguments))
        return started[-1]

    yield start
    for workers in started:
        workers.end()


@pytest.mark.timeout(1800)  # six starts of TensorFlow, two at a time
def test_a_killed_worker_is_named_within_a_minute_and_the_run_goes_on_from_its_checkpoint(
    start, tmp_path
):
    folder = tmp_path / "run"
    for killed, line, stage in (
        (1, "teacher: epoch 2 of 3", "teacher"),
        (0, "student, distilled: epoch 1 of 3", "distilled"),
    ):
        workers = start()
        workers.wait_for(killed, line)
        workers.processes[killed].send_signal(signal.SIGKILL)
        left = 1 - killed
        assert workers.processes[left].wait(timeout=60) == 2, workers.said(left)
        error = workers.said(left).split("Error: ")[-1]
        assert f"because worker {killed} (localhost:" in error
        assert f"The last checkpoint in {folder.name} is whole" in error
        checkpoint = tf.train.latest_checkpoint(str(folder / stage / "checkpoint"))
        assert len(tf.train.list_variables(checkpoint)) > 10
        rows = json.loads((folder / stage / "history.json").read_text())
        assert len(rows) >= 1
    workers = start()
    assert [process.wait(timeout=500) for process in workers.processes] == [0, 0], workers.said(0)
    for index in (0, 1):
        assert "student, distilled: resuming after epoch" in workers.said(index)
        assert "Stage 2" not in workers.said(index)
    assert {path.name for path in folder.iterdir()} == {*RUN_FILES} - OTHER_STAGES
    report = json.loads((folder / "report.json").read_text())
    assert report["training"]["teacher"]["epochs"] == [1, 2, 3]
    assert report["training"]["distilled"]["epochs"] == [1, 2, 3]
    assert report["proof"]["float_tensors"] == 0
    for name, history in report["training"].items():
        # Of two workers, each with half of the samples: neither's half, nor the sum of both.
        assert 0 <= max(history["history"]["val_accuracy"]) <= 1, name


def test_a_run_on_two_devices_of_a_machine_trains_as_on_one(tmp_path):
    # A process of its own: logical devices can only be made before TensorFlow starts.
    program = f"""
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
half = tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(cpu, [half, half])
from kdtflite.pipeline.run import run
for strategy in ("none", "mirrored"):
    run({str(tmp_path / "recipe.yaml")!r}, output=strategy, strategy=strategy)
"""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Training on 2 devices of this machine." in done.stderr
    one, two = (
        json.loads((tmp_path / strategy / "report.json").read_text())
        for strategy in ("none", "mirrored")
    )
    # Not the same to the bit: sums are taken in another order.
    assert one["models"][0]["sha256"] != two["models"][0]["sha256"]
    for before, after in zip(one["models"], two["models"], strict=True):
        # Samples near a tie may change sides; the losses below are what is promised.
        assert abs(after["accuracy"] - before["accuracy"]) <= 0.02, before["key"]
    assert list(one["training"]) == ["teacher", "distilled", "distilled_int8"]
    for name, training in one["training"].items():
        for term in ("loss", "val_loss"):
            given = two["training"][name]["history"][term]
            assert given == pytest.approx(training["history"][term], rel=1e-3), (name, term)
