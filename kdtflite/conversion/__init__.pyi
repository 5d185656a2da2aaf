from .convert import convert as convert
from .integer_proof import IntegerProof as IntegerProof
from .integer_proof import prove_fully_integer as prove_fully_integer
from .mixed import MixedPrecision as MixedPrecision
from .mixed import MixedStep as MixedStep
from .mixed import mixed_precision as mixed_precision
from .targets import TARGETS as TARGETS
from .targets import Target as Target
