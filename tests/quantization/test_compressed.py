"""Quantization-aware training undoes sparsity and clusters, and says so before it starts."""

import numpy as np
import tf_keras as keras

from kdtflite.quantization import quantize_aware
from kdtflite.quantization.compressed import describe_compression, find_compressed_weights

L = keras.layers


def build(change=lambda kernel: kernel):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((20,)), L.Dense(16, "relu", name="wide"), L.Dense(3, name="head")]
    )
    wide = model.get_layer("wide")
    wide.set_weights([change(wide.get_weights()[0]), np.zeros(16)])
    return model


def prune(kernel):
    kernel = kernel.copy()
    kernel.flat[: 3 * kernel.size // 4] = 0.0
    return kernel


def cluster(kernel):
    return np.round(kernel * 8) / 8


def test_pruned_and_clustered_kernels_are_found():
    assert find_compressed_weights(build()) == ({}, {})
    assert find_compressed_weights(build(prune)) == ({"wide": 0.75}, {})
    count = len(np.unique(cluster(build().get_layer("wide").get_weights()[0])))
    assert find_compressed_weights(build(cluster)) == ({}, {"wide": count})
    # A layer that is all zeros, as some initializers make it, was not pruned.
    assert find_compressed_weights(build(np.zeros_like)) == ({}, {})


def test_it_is_said_before_the_training(capsys):
    quantize_aware(build(prune))
    said = capsys.readouterr().err
    assert "Weights are sparse in 'wide' (75% zeros or more). Quantization-aware training" in said
    quantize_aware(build(cluster))
    assert "Weights are clustered in 'wide'" in capsys.readouterr().err
    quantize_aware(build())
    assert "Weights are" not in capsys.readouterr().err


def test_many_layers_are_summarized():
    layers = [keras.Input((8,)), *(L.Dense(8, name=f"d{i}") for i in range(5))]
    model = keras.Sequential(layers)
    for layer in model.layers:
        layer.kernel.assign(np.eye(8))
    assert "sparse in 'd0', 'd1', 'd2' and 2 more layers (88% zeros" in describe_compression(model)
