from .distillation.teachers import *  # noqa: F403
