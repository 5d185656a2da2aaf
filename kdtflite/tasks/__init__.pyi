from .base import Answers as Answers
from .base import Task as Task
from .multilabel import LabelScores as LabelScores
from .multilabel import MultiLabelEvaluation as MultiLabelEvaluation
from .regression import RegressionEvaluation as RegressionEvaluation
from .regression import ValueErrors as ValueErrors
from .segmentation import ClassOverlap as ClassOverlap
from .segmentation import SegmentationEvaluation as SegmentationEvaluation
