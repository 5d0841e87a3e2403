"""The kinds of metrics, and the list of those that are declared.

Declare a metric once, in the module that counts, and count in groups where many things happen together.  The values of
a label must be few and known beforehand: never an id, a URL, or anything else that a client or an endpoint chooses.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from core.metrics.store import LIVE_ONLY, Key, Numbers, Store, store

Labels = tuple[str, ...]

declared: dict[str, _Declared] = {}
# Adding to a number is a read and a write, so threads must not do it at the same time.
_adding = threading.Lock()


class _Declared:
    """A metric.  name: as Prometheus has it.  help: one sentence.  labels: their names."""

    kind = ""

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        if name in declared:
            raise ValueError(f"there are two metrics {name}")
        self.name = name
        self.help = help
        self.labels = tuple(labels)
        self._store: Store | None = None
        self._numbers: dict[Labels, Numbers] = {}
        declared[name] = self

    @property
    def width(self) -> int:
        """Return how many numbers there are for each combination of labels."""
        return 1

    def family(self, read: Iterable[tuple[Labels, list[float]]]) -> Metric:
        """Return what Prometheus reads.  read: the numbers for each combination of labels."""
        raise NotImplementedError

    def of(self, labels: Labels) -> Numbers:
        """Return the numbers for a combination of labels."""
        current = store()
        if current is not self._store:  # a forked process has another store
            self._store, self._numbers = current, {}
        numbers = self._numbers.get(labels)
        if numbers is None:
            if len(labels) != len(self.labels):
                raise ValueError(f"{self.name} has the labels {self.labels}, not {labels}")
            key: Key = (self.kind, self.name, *labels)
            numbers = self._numbers[labels] = current.numbers(key, self.width)
        return numbers


class Counter(_Declared):
    """A number that only grows.  Its name ends in `_total`."""

    kind = "c"

    def inc(self, *labels: str, by: float = 1) -> None:
        """Add to the number."""
        numbers = self.of(labels)
        with _adding:
            numbers[0] += by

    def family(self, read: Iterable[tuple[Labels, list[float]]]) -> Metric:
        family = CounterMetricFamily(self.name.removesuffix("_total"), self.help, labels=self.labels)
        for labels, numbers in read:
            family.add_metric(labels, numbers[0])
        return family


class Gauge(_Declared):
    """A number of a live process; what is read is the sum over all of them."""

    kind = LIVE_ONLY

    def set(self, value: float, *labels: str) -> None:
        """Set the number."""
        self.of(labels)[0] = value

    def family(self, read: Iterable[tuple[Labels, list[float]]]) -> Metric:
        family = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        for labels, numbers in read:
            family.add_metric(labels, numbers[0])
        return family


class Histogram(_Declared):
    """How often something took how long, in buckets.  bounds: upper bounds of the buckets, in seconds; one more has
    none."""

    kind = "h"

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), *, bounds: Sequence[float]) -> None:
        super().__init__(name, help, labels)
        self.bounds = tuple(bounds)

    @property
    def width(self) -> int:
        """Return how many numbers there are: the buckets, and the sum."""
        return len(self.bounds) + 2

    def observe(self, value: float, *labels: str) -> None:
        """Count one value."""
        numbers = self.of(labels)
        bucket = bisect_left(self.bounds, value)
        with _adding:
            numbers[bucket] += 1
            numbers[-1] += value

    def observe_all(self, values: Sequence[float], *labels: str) -> None:
        """Count many values at once."""
        if not values:
            return
        numbers, bounds = self.of(labels), self.bounds
        found: dict[int, int] = {}
        for value in values:
            bucket = bisect_left(bounds, value)
            found[bucket] = found.get(bucket, 0) + 1
        with _adding:
            for bucket, count in found.items():
                numbers[bucket] += count
            numbers[-1] += sum(values)

    def family(self, read: Iterable[tuple[Labels, list[float]]]) -> Metric:
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for labels, numbers in read:
            buckets, so_far = [], 0.0
            for bound, count in zip((*map(str, self.bounds), "+Inf"), numbers, strict=False):
                so_far += count
                buckets.append((bound, so_far))
            family.add_metric(labels, buckets, numbers[-1])
        return family
