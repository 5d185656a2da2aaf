"""The least and greatest value (Jacob et al., arXiv 1712.05877)."""

from __future__ import annotations

from kdtflite.quantization.calibration.observer import Observer, Values

__all__ = ["MinMax"]


class MinMax(Observer):
    """The range of all values seen: nothing is clipped, and one outlier widens every step.

        low = min(x, 0), high = max(x, 0)

    What TensorFlow Lite's own converter does (Jacob et al., arXiv 1712.05877).
    """

    def _see(self, values: Values, low: float, high: float) -> None:
        pass  # the observer notes the ends of every batch itself

    def _range(self) -> tuple[float, float]:
        return self.least, self.greatest
