"""Distillation: a student learns from a teacher's outputs as well as from the labels."""

import lazy_loader

# Names and their modules stand in __init__.pyi; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
