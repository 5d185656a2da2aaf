"""Losses between feature maps, and the adapters that join them."""
