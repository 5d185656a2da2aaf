from .aware import quantize_aware as quantize_aware
from .calibration import get_calibration as get_calibration
from .equalization import equalize as equalize
from .ranges import calibrate_ranges as calibrate_ranges
from .report import LayerQuantization as LayerQuantization
from .report import QuantizationAwareness as QuantizationAwareness
from .schedule import QuantizationSchedule as QuantizationSchedule
from .strip import strip as strip
