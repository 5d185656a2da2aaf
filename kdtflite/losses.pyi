from .distillation.losses import *  # noqa: F403
