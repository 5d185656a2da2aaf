from . import losses as losses
from . import schedules as schedules
from . import teachers as teachers
from .distiller import Distiller as Distiller
