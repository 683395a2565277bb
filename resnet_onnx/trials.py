"""Which of several engines is the fastest for a shape: tried once, and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import stat
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Run = Callable[[Any], Any]

PACKAGES = ("resnet-twins", "torch", "jax", "jaxlib", "onnxruntime", "openvino")
"""Whose versions decide how fast an engine is."""

WARM, ROUNDS, ENOUGH = 2, 15, 1.0
"""Calls before the first that counts, calls that count at most, seconds for these."""


_MOST_BYTES = 2**26


@dataclass(frozen=True)
class Trial:
    """What was found for a shape.

    Args:
        engine: the fastest.
        seconds: of a call, by engine: medians of calls that took turns.
        failed: why an engine took no part, by its name.
        remembered: whether it was found by an earlier process.
    """

    engine: str
    seconds: Mapping[str, float]
    failed: Mapping[str, str]
    remembered: bool = False


class Trials:
    """A function that runs the engine that is the fastest for its images' shape.

    The first call for a shape makes every engine ready, lets them take turns for about
    a second each, and writes down what it found, in :func:`cache_file`. Later calls,
    and later processes on the same machine with the same versions, use it.

    Args:
        engines: engine → what makes it ready.
        about: what else decides: network, dtype, threads.
        finished: waits for a result.

    Attributes:
        found: what was found, by shape.
    """

    def __init__(
        self,
        engines: Mapping[str, Callable[[], Run]],
        about: Mapping[str, Any],
        finished: Callable[[Any], Any] = lambda result: result,
    ) -> None:
        self.found: dict[tuple[int, ...], Trial] = {}
        self._engines, self._about, self._finished = engines, about, finished
        self._ready: dict[str, Run] = {}

    def __call__(self, x: Any) -> Any:
        """Runs the fastest engine for images of this shape; see :class:`Trials`.

        Raises:
            RuntimeError: no engine runs them.
        """
        shape = tuple(x.shape)
        if shape not in self.found:
            self.found[shape] = self._remembered(shape) or self._tried(shape, x)
        return self._made(self.found[shape].engine)(x)

    def _made(self, engine: str) -> Run:
        if engine not in self._ready:
            self._ready[engine] = self._engines[engine]()
        return self._ready[engine]

    def _tried(self, shape: tuple[int, ...], x: Any) -> Trial:
        runs, failed = {}, {}
        for engine in self._engines:
            try:
                run = self._made(engine)
                for _ in range(WARM):
                    self._finished(run(x))
                runs[engine] = run
            except Exception as error:  # one that does not run here is not the fastest
                lines = str(error).strip().splitlines() or [""]
                failed[engine] = f"{type(error).__name__}: {lines[0]}"
        if not runs:
            raise RuntimeError(f"no engine runs images of shape {shape}: {failed}")
        times: dict[str, list[float]] = {engine: [] for engine in runs}
        if len(runs) > 1:
            for engine, seconds in self._turns(runs, x):
                times[engine].append(seconds)
        seconds = {name: statistics.median(t) for name, t in times.items() if t}
        fastest = min(seconds, key=seconds.__getitem__, default=next(iter(runs)))
        for engine in [*self._ready]:
            if engine != fastest and not self._chosen(engine):
                del self._ready[engine]  # with its copy of the weights
        found = Trial(fastest, seconds, failed)
        self._remember(shape, found)
        return found

    def _turns(self, runs: Mapping[str, Run], x: Any) -> Iterator[tuple[str, float]]:
        """Yields how long calls took that took turns, so that drift hits all alike."""
        begun = time.perf_counter()
        for _ in range(ROUNDS):
            for engine, run in runs.items():
                start = time.perf_counter()
                self._finished(run(x))
                yield engine, time.perf_counter() - start
            if time.perf_counter() - begun > ENOUGH * len(runs):
                return

    def _chosen(self, engine: str) -> bool:
        return any(trial.engine == engine for trial in self.found.values())

    def _key(self, shape: tuple[int, ...]) -> str:
        told = {
            "machine": [platform.node(), platform.machine(), _processors()],
            "versions": {name: _version(name) for name in PACKAGES},
            "engines": sorted(self._engines),
            "shape": list(shape),
            **self._about,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _remembered(self, shape: tuple[int, ...]) -> Trial | None:
        told: Any = _read().get(self._key(shape))
        with suppress(TypeError, KeyError):
            if told["engine"] in self._engines:
                seconds, failed = dict(told["seconds"]), dict(told["failed"])
                return Trial(told["engine"], seconds, failed, remembered=True)
        return None

    def _remember(self, shape: tuple[int, ...], trial: Trial) -> None:
        told = {
            "engine": trial.engine,
            "seconds": dict(trial.seconds),
            "failed": dict(trial.failed),
        }
        path = cache_file()
        if path.exists() and not path.is_file():  # a device, or a FIFO: it stays
            return
        with suppress(OSError):  # where there is no place for it, it is tried again
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**_read(), self._key(shape): told}, indent=1)
            temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)


def cache_file() -> Path:
    """Returns where trials are written down: in ``XDG_CACHE_HOME``, or ``~/.cache``."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "resnet-twins" / "engines.json"


def _read() -> dict[str, Any]:
    with (
        suppress(OSError, ValueError, RecursionError),
        open(cache_file(), "rb", opener=_at_once) as file,
    ):
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            found = json.loads(file.read(_MOST_BYTES))
            return found if isinstance(found, dict) else {}
    return {}


def _at_once(path: str, flags: int) -> int:
    """Opens what is there; a FIFO could hold us for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
