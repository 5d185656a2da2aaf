"""The least and greatest value (Jacob et al., arXiv 1712.05877)."""

from __future__ import annotations

from kdtflite.quantization.calibration.observer import Observer, Values

__all__ = ["MinMax"]


class MinMax(Observer):
    """The range of all values: nothing is clipped, and one outlier widens every step.

        low = min(x, 0), high = max(x, 0)

    TensorFlow Lite's own converter uses it (Jacob et al., arXiv 1712.05877).
    """

    def _see(self, values: Values, low: float, high: float) -> None:
        pass  # the base class notes the limits of every batch

    def _choose_range(self) -> tuple[float, float]:
        return self.least, self.greatest
