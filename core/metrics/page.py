"""The page that Prometheus reads, and a separate port for it."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import structlog
from django.conf import settings
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.exposition import choose_encoder

from core.metrics.kinds import Labels, declared
from core.metrics.store import read_all

log = structlog.get_logger()

ReadMetrics = Callable[[], Iterable[Metric]]


class CountedMetrics:
    """What the processes that share METRICS_DIR have counted."""

    def collect(self) -> Iterator[Metric]:
        """Yield every metric that is declared, also those that have no value yet."""
        read: dict[str, list[tuple[Labels, list[float]]]] = defaultdict(list)
        for (kind, name, *labels), numbers in read_all(Path(settings.METRICS_DIR)).items():
            metric = declared.get(name)
            # Another version of this program may have written it.
            if metric and (metric.kind, metric.width, len(metric.labels)) == (kind, len(numbers), len(labels)):
                read[name].append((tuple(labels), numbers))
        for name, metric in sorted(declared.items()):
            yield metric.family(sorted(read[name]))


class _Scraped:
    """Metrics that are looked up when the page is read."""

    def __init__(self, read: ReadMetrics) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the names are known only when the page is read."""
        return ()


class _Counted(CountedMetrics):
    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering reads no files."""
        return ()


def make_registry(read: ReadMetrics) -> CollectorRegistry:
    """Return a registry of all that is counted, and of the metrics that `read` returns."""
    registry = CollectorRegistry()
    registry.register(_Counted())
    registry.register(_Scraped(read))
    return registry


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the page and its media type, in the format that the client asks for."""
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class MetricsPort:
    """The port METRICS_BIND: of the processes that may serve it, the first one does; when that one ends, another one
    does."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None

    def open(self) -> None:
        """Serve the port, unless this process does already or another one has it."""
        if not (settings.METRICS_DIR and settings.METRICS_BIND):
            return
        host, port = settings.METRICS_BIND
        with self._lock:
            if self._stop is None:
                with contextlib.suppress(OSError):
                    server, _ = start_http_server(port, host, self._registry)
                    self._stop = server.server_close
                    log.info("metrics_served", address=f"{host}:{port}")

    def close(self) -> None:
        """Leave the port to another process."""
        with self._lock:
            if self._stop is not None:
                self._stop()
