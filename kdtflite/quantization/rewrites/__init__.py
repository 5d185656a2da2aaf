"""Rewrites of a float model into one that trains and converts whole, each alone and exact."""
