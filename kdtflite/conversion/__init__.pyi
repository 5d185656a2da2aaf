from .convert import convert as convert
from .integer_proof import IntegerProof as IntegerProof
from .integer_proof import prove_fully_integer as prove_fully_integer
from .proof import TargetProof as TargetProof
from .proof import prove_target as prove_target
from .targets import TARGETS as TARGETS
from .targets import Target as Target
