"""Distillation losses, one per file; each cites its paper."""

import lazy_loader

# __init__.pyi lists the names and their modules; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
