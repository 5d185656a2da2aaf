from . import losses as losses
from . import teachers as teachers
from .distiller import Distiller as Distiller
