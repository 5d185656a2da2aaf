import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtflite.errors import ConfigurationError, DataError, ModelFileError, UnsupportedModelError
from kdtflite.evaluation import Benchmark, Latency, arena_bytes, benchmark
from kdtflite.evaluation.arena import count_covered_bytes
from kdtflite.evaluation.latency import count_delegated_operators
from kdtflite.evaluation.machine import _read_cpu_name, count_usable_cores, describe_machine


def test_every_invoke_is_timed_for_every_number_of_threads(int8_file):
    result = benchmark(int8_file, threads=(1, 2, 1), invokes=250, warmup=0, progress=False)
    assert [latency.threads for latency in result.latencies] == [1, 2]
    for latency in result.latencies:
        assert latency.milliseconds.shape == (250,)
        assert 0 < latency.minimum <= latency.p50 <= latency.p90 <= latency.p99
        assert latency.delegate == "XNNPACK"
    assert result.file_bytes == len(int8_file.content)
    assert json.loads(json.dumps(result.to_dict()))["latencies"][0]["invokes"] == 250


def test_a_single_number_of_threads_is_taken(int8_file):
    for threads in (1, np.int64(1), [1], range(1, 2)):
        result = benchmark(int8_file, threads=threads, warmup=0, progress=False)
        assert [latency.threads for latency in result.latencies] == [1]


def test_without_xnnpack_no_delegate_is_reported(int8_file):
    result = benchmark(int8_file, threads=(1,), xnnpack=False, progress=False)
    assert (result.latencies[0].delegate, result.latencies[0].delegated) == ("none", 0)


def test_percentiles_of_known_times():
    latency = Latency(1, np.arange(1.0, 202.0), "none", 0, 3)
    # 1 .. 201: percentile p lies at 1 + 2 p
    assert (latency.p50, latency.p90, latency.p99, latency.mean) == (101.0, 181.0, 199.0, 101.0)
    result = Benchmark((latency,), 10, 20, 5, describe_machine())
    assert "101" in str(result)
    assert "arena 20 bytes" in str(result)
    assert len(result.plot().lines) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"invokes": 199}, "at least 200"),
        ({"warmup": -1}, "from 0 up"),
        ({"threads": ()}, "whole numbers"),
        ({"threads": (0,)}, "whole numbers"),
        ({"threads": (1.5,)}, "whole numbers"),
        ({"threads": 0}, "whole numbers"),
        ({"threads": True}, "whole numbers"),
        ({"threads": 1.0}, "whole numbers"),
        ({"threads": "1"}, "whole numbers"),
        ({"threads": [None]}, "whole numbers"),
        ({"threads": 10**9}, "whole numbers"),
    ],
)
def test_settings_that_give_no_honest_number_are_refused(int8_file, options, said):
    with pytest.raises(ConfigurationError, match=said):
        benchmark(int8_file, progress=False, **options)


def test_only_files_are_timed_and_only_on_fitting_samples(int8_file, student, samples, tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"kdtflite\.convert"):
        benchmark(student)
    with pytest.raises(ModelFileError):
        benchmark(tmp_path / "missing.tflite")
    with pytest.raises(DataError, match=r"Received: \(1, 8, 8\)"):
        benchmark(int8_file, data=samples[..., 0], progress=False)
    benchmark(int8_file, data=samples, threads=(1,), progress=False)


def test_the_delegates_share_of_the_reference_model(shared_data):
    from kdtflite.lite.model import LiteModel

    model = LiteModel.load(shared_data / "reference_models" / "kws_ref_model.tflite")
    # AVERAGE_POOL_2D and SOFTMAX stay: their output is scaled in a way XNNPACK does not do.
    assert count_delegated_operators(model.interpreter()) == (11, 13)
    assert count_delegated_operators(model.interpreter(xnnpack=False)) == (0, 13)


def test_the_arena_of_the_reference_model(shared_data):
    from kdtflite.lite.model import LiteModel

    model = LiteModel.load(shared_data / "reference_models" / "pretrainedResnet_quant.tflite")
    # Alive together in the third convolution, in bytes: the image 32·32·3 (an input's place is
    # never reused), the im2col scratch 32·32·144, the convolution's input and its output, and
    # the first convolution's output, which the addition still needs: 32·32·16 each.
    assert arena_bytes(model) == 3072 + 147456 + 3 * 16384


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20))))
def test_a_union_counts_every_byte_once(ranges):
    pairs = [(start, start + size) for start, size in ranges]
    assert count_covered_bytes(pairs) == len({b for start, end in pairs for b in range(start, end)})


def test_small_holes_are_padding():
    assert count_covered_bytes([(0, 10), (64, 74)], hole=64) == 74
    assert count_covered_bytes([(0, 10), (74, 84)], hole=64) == 20


def test_the_machine_is_described(tmp_path):
    machine = describe_machine()
    assert machine["cores"] == count_usable_cores() >= 1
    assert json.dumps(machine)
    (tmp_path / "x86").write_text("processor : 0\nmodel : 1\nmodel name\t: Some CPU @ 2 GHz\n")
    assert _read_cpu_name(tmp_path / "x86") == "Some CPU @ 2 GHz"
    (tmp_path / "arm").write_text("processor\t: 0\nModel\t\t: Some Board\n")
    assert _read_cpu_name(tmp_path / "arm") == "Some Board"
    assert _read_cpu_name(tmp_path / "missing")
