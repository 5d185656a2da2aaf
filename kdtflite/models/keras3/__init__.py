"""Keras 3 models, objects and callbacks converted to tf_keras."""
