"""The file against its Keras model, layer by layer."""
