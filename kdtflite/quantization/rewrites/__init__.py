"""Rewrites of single layers into layers with an integer kernel, each of them exact."""
