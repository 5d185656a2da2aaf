"""What a model file may hold: checked before Keras or TensorFlow reads it."""
