from .base import Teacher as Teacher
from .cache.teacher import TeacherCache as TeacherCache
from .callable import CallableTeacher as CallableTeacher
from .ensemble import EnsembleTeacher as EnsembleTeacher
from .lite import LiteTeacher as LiteTeacher
from .model import ModelTeacher as ModelTeacher
from .onnx import OnnxTeacher as OnnxTeacher
from .saved_model import SavedModelTeacher as SavedModelTeacher
