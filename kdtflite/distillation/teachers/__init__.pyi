from .base import Teacher as Teacher
from .model import ModelTeacher as ModelTeacher
