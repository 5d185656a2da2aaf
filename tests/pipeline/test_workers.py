import json
import socket

import pytest
import tensorflow as tf

from kdtflite.errors import ConfigurationError, DataError, KdtfliteError
from kdtflite.pipeline import workers as workers_module
from kdtflite.pipeline.cluster import Cluster, read_cluster
from kdtflite.pipeline.run import run
from kdtflite.pipeline.workers import ALONE, Workers


def config(cluster, kind="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


@pytest.fixture
def listening():
    """The address of somebody who answers, and one of nobody."""
    with socket.socket() as server, socket.socket() as closed:
        for each in (server, closed):
            each.bind(("localhost", 0))
        server.listen()
        alive, dead = (f"localhost:{each.getsockname()[1]}" for each in (server, closed))
        closed.close()
        yield alive, dead


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        (config({"worker": ["a:1"]}), None),
        (config({"worker": ["a:1", "b:2"]}), Cluster(("a:1", "b:2"), 0)),
        (config({"worker": ["a:1", "b:2"]}, index=1), Cluster(("a:1", "b:2"), 1)),
        (config({"worker": ["b:2"], "chief": ["a:1"]}), Cluster(("a:1", "b:2"), 1)),
        (config({"worker": ["b:2"], "chief": ["a:1"]}, "chief"), Cluster(("a:1", "b:2"), 0)),
    ],
)
def test_the_cluster_is_that_of_tf_config_the_chief_first(monkeypatch, text, expected):
    monkeypatch.setenv("TF_CONFIG", text)
    assert read_cluster() == expected


@pytest.mark.parametrize(
    "text",
    [
        "localhost:1234",
        "[]",
        '{"cluster": {"worker": ["a:1", "b:2"]}}',
        config({"worker": ["a:1", "b:2"]}, index=2),
        config({"worker": ["a:1", "b:2"]}, "evaluator"),
        config({"worker": ["a:1", "b:2"], "ps": ["c:3"]}),
        config({"worker": ["a:1"], "chief": ["b:2", "c:3"]}),
    ],
)
def test_a_tf_config_that_cannot_be_used_is_refused_with_an_example(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ConfigurationError, match=r'TF_CONFIG.*\{"cluster": .*Received: '):
        Workers("auto")


def test_a_strategy_that_there_is_not_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ConfigurationError, match="auto, mirrored, multi_worker, none"):
        run("digits", output=tmp_path / "run", strategy="mirored")
    assert not (tmp_path / "run").exists()


def test_several_workers_or_gpus_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ConfigurationError, match=r"Received: TF_CONFIG=''"):
        Workers("multi_worker")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(ConfigurationError, match=r"needs several GPUs\. Received: 0"):
        _ = Workers("mirrored").strategy


def test_several_workers_are_refused_in_a_process_that_used_tensorflow(monkeypatch):
    tf.constant(1)
    monkeypatch.setenv("TF_CONFIG", config({"worker": ["localhost:1", "localhost:2"]}))
    with pytest.raises(ConfigurationError, match="Use a new process"):
        Workers("auto").start()
    Workers("none").start()  # whatever TF_CONFIG says


def test_alone_nothing_is_changed(tmp_path):
    batches = tf.data.Dataset.range(3)
    before = tf.distribute.get_strategy()
    with ALONE.scope(), ALONE.synchronize(None), ALONE.watch(tmp_path):
        assert tf.distribute.get_strategy() is before
    assert ALONE.shard(batches) is batches
    assert ALONE.choose_folder(tmp_path) == tmp_path
    assert ALONE.broadcast(5) == 5
    assert ALONE.is_chief


def test_others_than_the_chief_write_elsewhere_and_clear_it_away(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_CONFIG", config({"worker": ["a:1", "b:2"]}, index=1))
    worker = Workers("auto")
    assert not worker.is_chief
    with worker.watch(tmp_path):
        own = worker.choose_folder(tmp_path / "teacher")
        own.mkdir()
        assert tmp_path not in own.parents
    assert not own.parent.exists()


def test_those_who_do_not_answer_are_named_by_number_and_address(listening):
    alive, dead = listening
    assert Cluster((alive, dead, "myself:1"), 2).find_lost() == [f"worker 1 ({dead})"]


def test_a_lost_worker_is_one_sentence_and_other_errors_pass(monkeypatch, tmp_path, listening):
    alive, dead = listening
    monkeypatch.setenv("TF_CONFIG", config({"worker": [alive, dead, "myself:1"]}, index=2))
    workers = Workers("auto")
    with (
        pytest.raises(KdtfliteError, match=rf"because worker 1 \({dead}\) died.*start all workers"),
        workers.watch(tmp_path),
    ):
        raise tf.errors.UnavailableError(None, None, "Collective ops is aborted")
    monkeypatch.setattr(Cluster, "find_lost", lambda cluster: [])
    with pytest.raises(tf.errors.InternalError), workers.watch(tmp_path):
        raise tf.errors.InternalError(None, None, "no memory")
    with pytest.raises(tf.errors.InvalidArgumentError), workers.watch(tmp_path):
        raise tf.errors.InvalidArgumentError(None, None, "a fault of ours")


def test_a_folder_that_is_not_shared_is_said(monkeypatch):
    monkeypatch.setattr(workers_module, "_SECONDS_UNTIL_SEEN", 0.0)
    found = iter([None, 3])
    with pytest.raises(DataError, match=r"teacher/done\.json.*same on all workers"):
        ALONE.wait_for(lambda: next(found), "teacher/done.json")
    assert ALONE.wait_for(lambda: next(found), "teacher/done.json") == 3
