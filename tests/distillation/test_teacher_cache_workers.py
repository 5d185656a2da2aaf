"""Runs that are killed resume, and several processes write one cache together."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.teachers.cache import workers, writing
from kdtflite.distillation.teachers.cache.teacher import TeacherCache
from kdtflite.distillation.teachers.cache.workers import find_worker
from kdtflite.distillation.teachers.cache.writing import cache_teacher
from kdtflite.errors import DataError, KdtfliteError, OutputExistsError

SCRIPT = """
import json, sys, time
import numpy as np, tensorflow as tf, tf_keras as keras
from kdtflite.data.augment import Augmentation
from kdtflite.distillation.teachers.cache import writing
from kdtflite.distillation.teachers.cache.writing import cache_teacher

folder, kind, pause, worker = sys.argv[1], sys.argv[2], float(sys.argv[3]), json.loads(sys.argv[4])
writing._SHARD_SAMPLES = 6
x = np.random.default_rng(0).normal(0, 1, (40, 4, 4, 1)).astype(np.float32)
y = np.arange(40)
keras.utils.set_random_seed(1)
teacher = keras.Sequential(
    [keras.Input((4, 4, 1)), keras.layers.Conv2D(3, 2, name="maps"), keras.layers.Flatten(),
     keras.layers.Dense(3)], name="big"
)
data = (x, y) if kind == "arrays" else tf.data.Dataset.from_tensor_slices((x, y)).batch(3)
write = writing.write_shard
def slow(*args):
    time.sleep(pause)
    write(*args)
writing.write_shard = slow
if __name__ == "__main__":
    cache = cache_teacher(
        teacher, data, folder, views=2, augmentation=Augmentation(shift=1, flip=True),
        layers=["maps"], batch_size=3, worker=worker and tuple(worker),
    )
    print(cache.fingerprint(), flush=True)
"""


def start(folder, kind, *, pause=0.0, worker=None, env=None):
    command = [sys.executable, "-c", SCRIPT, str(folder), kind, str(pause), json.dumps(worker)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})},
    )


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out.strip().splitlines()[-1]


def shards(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("view*/*.npy")
    }


@pytest.mark.parametrize("kind", ["arrays", "stream"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path, kind):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = finished(start(whole, kind))
    assert len(list(whole.glob("view*/shard.json"))) == 14
    process = start(killed, kind, pause=0.3)
    while len(list(killed.glob("view*/shard.json"))) < 4:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    written = shards(killed)
    assert 0 < len(written) < len(shards(whole))
    times = {name: (killed / name).stat().st_mtime_ns for name in written}
    with pytest.raises(DataError, match="not complete: view"):
        TeacherCache.open(killed)
    assert finished(start(killed, kind)) == expected
    assert {name: (killed / name).stat().st_mtime_ns for name in written} == times
    assert shards(killed) == shards(whole)
    assert (killed / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()


@pytest.mark.parametrize("kind", ["arrays", "stream"])
def test_two_workers_write_what_one_writes(tmp_path, kind):
    alone, together = tmp_path / "alone", tmp_path / "together"
    expected = finished(start(alone, kind))
    workers = [
        start(together, kind, worker=(0, 2)),
        start(together, kind, worker=(1, 2), pause=0.05),
    ]
    assert [finished(worker) for worker in workers] == [expected, expected]
    assert shards(together) == shards(alone)


X = np.random.default_rng(0).normal(0, 1, (12, 4)).astype(np.float32)


def dense():
    keras.utils.set_random_seed(2)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="big")


def test_a_worker_left_alone_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_SHARD_SAMPLES", 4)
    monkeypatch.setattr(workers, "_PATIENCE", 0.3)
    with pytest.raises(
        KdtfliteError,
        match=r"worker 0 of 2 has written its shards, but view 0, samples 4 to 7 is missing",
    ):
        cache_teacher(dense(), X, tmp_path / "c", worker=(0, 2))
    with pytest.raises(DataError, match=r"not complete: view 0, samples 4 to 7 is missing"):
        TeacherCache.open(tmp_path / "c")
    # The other one comes late, or one process alone does the rest.
    assert cache_teacher(dense(), X, tmp_path / "c", worker=(1, 2)).samples == 12


def test_several_workers_do_not_replace_a_cache(tmp_path):
    cache_teacher(dense(), X, tmp_path / "c")
    with pytest.raises(OutputExistsError, match="Several workers cannot replace it"):
        cache_teacher(dense(), X + 1, tmp_path / "c", worker=(0, 2), overwrite=True)


@pytest.mark.parametrize(
    ("job", "task", "expected"),
    [("chief", 0, (0, 3)), ("worker", 0, (1, 3)), ("worker", 1, (2, 3)), ("evaluator", 0, (0, 1))],
)
def test_a_workers_place_is_read_from_the_strategys_cluster(monkeypatch, job, task, expected):
    cluster = tf.train.ClusterSpec({"chief": ["a:1"], "worker": ["b:1", "c:1"]})

    class Strategy:
        cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            cluster, task_type=job, task_id=task
        )

    assert find_worker(None) == (0, 1)
    monkeypatch.setattr(tf.distribute, "get_strategy", Strategy)
    assert find_worker(None) == expected
