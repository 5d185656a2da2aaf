from .aware import quantize_aware as quantize_aware
from .ranges import calibrate_ranges as calibrate_ranges
from .report import LayerQuantization as LayerQuantization
from .report import QuantizationAwareness as QuantizationAwareness
