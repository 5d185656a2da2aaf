"""Losses between gradients with respect to the inputs."""
