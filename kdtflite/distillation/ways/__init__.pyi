from .assistants import assistant_chain as assistant_chain
from .born_again import born_again as born_again
from .fit import Fit as Fit
from .multi_task import MultiTaskDistiller as MultiTaskDistiller
from .mutual import MutualDistiller as MutualDistiller
from .semi_supervised import SemiSupervisedDistiller as SemiSupervisedDistiller
from .semi_supervised import semi_supervised_batches as semi_supervised_batches
from .stages import Trained as Trained
