"""Losses between feature maps, and their adapters."""
