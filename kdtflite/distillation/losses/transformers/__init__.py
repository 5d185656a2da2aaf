"""Losses between the hidden states and attention maps of transformers."""
