"""Losses between the relations of a batch's samples."""
