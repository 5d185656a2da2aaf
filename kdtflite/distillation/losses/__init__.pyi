from .base import DistillationLoss as DistillationLoss
from .base import FeatureLoss as FeatureLoss
from .base import LogitsLoss as LogitsLoss
from .hard_labels import HardLabels as HardLabels
from .soft_targets import SoftTargets as SoftTargets
