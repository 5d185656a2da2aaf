"""Model files with something in them that an honest one does not have."""

import json
import shutil
import zipfile

import h5py
import keras as keras3
import numpy as np
import tf_keras as keras

GENERATIONS = {2: keras, 3: keras3}


def small_model(generation):
    package = GENERATIONS[generation]
    x = package.Input((4,), name="x")
    y = package.layers.Dense(3, name="first")(x)
    return package.Model(x, package.layers.Activation("relu", name="last")(y))


def save(model, path):
    """Saves to .keras or .h5, or to a SavedModel folder if there is no ending."""
    if path.suffix:
        model.save(path)
    else:
        model.save(path, save_format="tf")
    return path


def change_config(path, change):
    """Rewrites the configuration inside a .keras file, an .h5 file or a Keras 2 SavedModel."""
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
    elif path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        change(config)
        change_member(path, "config.json", json.dumps(config).encode())
    else:
        from tf_keras.protobuf import saved_metadata_pb2

        file = path / "keras_metadata.pb"
        message = saved_metadata_pb2.SavedMetadata.FromString(file.read_bytes())
        for node in message.nodes:
            config = json.loads(node.metadata)
            if config.get("is_graph_network"):
                change(config)
                node.metadata = json.dumps(config)
        file.write_bytes(message.SerializeToString())


def change_member(path, name, content, *, method=zipfile.ZIP_STORED):
    """Replaces or adds a member of a .keras file."""
    with zipfile.ZipFile(path) as archive:
        parts = {member: archive.read(member) for member in archive.namelist()}
    parts[name] = content
    with zipfile.ZipFile(path, "w", method) as archive:
        for member, data in parts.items():
            archive.writestr(member, data)


def change_weights(path, change):
    """Calls `change` with the HDF5 file that holds the weights of a .keras or .h5 file."""
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            change(file)
        return
    inner = path.with_suffix(".inner.h5")
    with zipfile.ZipFile(path) as archive:
        inner.write_bytes(archive.read("model.weights.h5"))
    with h5py.File(inner, "a") as file:
        change(file)
    change_member(path, "model.weights.h5", inner.read_bytes())


def find_dataset(file):
    """Returns the name of the first dataset with two axes in an HDF5 file: a kernel."""
    found = []
    file.visititems(
        lambda name, entry: (
            found.append(name) if isinstance(entry, h5py.Dataset) and entry.ndim == 2 else None
        )
    )
    return found[0]


def put_layer(config, layer):
    """Adds a layer that nothing takes, at the end of a Functional model's configuration."""
    layers = config["config"]["layers"]
    layers.append({"name": "evil", "inbound_nodes": [], **layer})


def set_in_layer(config, **values):
    """Changes the configuration of the layer "first"."""
    layers = [one["config"] for one in config["config"]["layers"]]
    next(one for one in layers if one.get("name") == "first").update(values)


def set_activation(config, activation):
    set_in_layer(config, activation=activation)


def copy_folder(source, target):
    shutil.copytree(source, target)
    return target


def ones(shape):
    return np.ones(shape, np.float32)
