"""Losses between gradients by the inputs."""
