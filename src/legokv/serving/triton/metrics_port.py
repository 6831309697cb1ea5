"""Shows numbers on Triton's metrics port. Runs in Triton's stub."""

from typing import Any

import triton_python_backend_utils as pb_utils

from legokv.metrics import Family, Labels, Sample


class MetricsPort:
    """A Board: a series comes to the port when it is first shown. For one thread at a time."""

    def __init__(self) -> None:
        self._families: dict[str, Any] = {}
        self._series: dict[tuple[str, Labels], Any] = {}

    def show(self, sample: Sample, change: float) -> None:
        series = self._series.get((sample.family.name, sample.labels))
        if series is None:
            series = self._family(sample.family).Metric(labels=dict(sample.labels))
            self._series[sample.family.name, sample.labels] = series
        if sample.family.kind == "gauge":
            series.set(sample.value)
        else:
            series.increment(change)

    def _family(self, family: Family) -> Any:
        if family.name not in self._families:
            kinds = {"counter": pb_utils.MetricFamily.COUNTER, "gauge": pb_utils.MetricFamily.GAUGE}
            self._families[family.name] = pb_utils.MetricFamily(
                name=family.name, description=family.meaning, kind=kinds[family.kind]
            )
        return self._families[family.name]
