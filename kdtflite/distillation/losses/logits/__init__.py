"""Losses between logits."""
