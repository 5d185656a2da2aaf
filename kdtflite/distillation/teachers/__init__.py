"""What can teach."""

from kdtflite.distillation.teachers.model import ModelTeacher

__all__ = ["ModelTeacher"]
