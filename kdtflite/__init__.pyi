from . import data as data
from . import models as models
from .conversion.convert import convert as convert
from .conversion.integer_proof import IntegerProof as IntegerProof
from .conversion.integer_proof import prove_fully_integer as prove_fully_integer
from .conversion.metadata import add_metadata as add_metadata
from .conversion.mixed import mixed_precision as mixed_precision
from .distillation import losses as losses
from .distillation import schedules as schedules
from .distillation import teachers as teachers
from .distillation.distiller import Distiller as Distiller
from .distillation.teachers.cache.writing import cache_teacher as cache_teacher
from .errors import KdtfliteError as KdtfliteError
from .errors import NotFullyIntegerError as NotFullyIntegerError
from .evaluation.accuracy import evaluate as evaluate
from .evaluation.first_difference import first_difference as first_difference
from .evaluation.golden import golden_vectors as golden_vectors
from .evaluation.latency import benchmark as benchmark
from .evaluation.layer_errors import layer_errors as layer_errors
from .evaluation.parity import compare as compare
from .litemodel import LiteModel as LiteModel
from .models.load import load_model as load_model
from .pipeline.run import run as run
from .pipeline.until_accurate import until_accurate as until_accurate
from .quantization.aware import quantize_aware as quantize_aware
from .quantization.post_training import quantize_post_training as quantize_post_training

__version__: str
