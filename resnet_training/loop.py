"""A run: steps, evaluations, checkpoints."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parity.errors import CheckpointError
from resnet_training import checkpoint
from resnet_training.checkpoint import BEST, LAST, Progress
from resnet_training.engine import Backend, Counts, Engine, State, plain
from resnet_training.engines import create_engine
from resnet_training.loader import Loader
from resnet_training.metrics import Line, Metrics, write_picture
from resnet_training.plan import Plan
from resnet_training.sources import Data

_LOSSES_AT_ONCE = 10
"""Steps whose losses are fetched together: to fetch one is to wait for its step."""


@dataclass(frozen=True)
class Seen:
    """What whoever watches a run is told.

    Args:
        step: steps that are done.
        steps: length of the run.
        loss: mean of the last steps.
        accuracy: of the last evaluation, if there was one.
        images_per_second: over all devices, since the first step was done.
        first: seconds until the first step was done, compilation included.
    """

    step: int
    steps: int
    loss: float
    accuracy: float | None
    images_per_second: float
    first: float


Watch = Callable[[Seen], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        step: steps that are done.
        done: whether the recipe is at its end.
        best: accuracy of the best evaluation; -1 if there was none.
        best_step: after how many steps that was.
        last: accuracy of the last evaluation; -1 if there was none.
        skipped: images that could not be read.
        signal: number of the signal that ended it; 0 for none.
        waited: seconds in which it waited for images.
        seconds: that it took, but for the first step.
        first: seconds until the first step was done, compilation included.
        images_per_second: over all devices, behind the first step.
    """

    step: int
    done: bool
    best: float
    best_step: int
    last: float
    skipped: tuple[str, ...]
    signal: int
    waited: float
    seconds: float
    first: float
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """What of a run changes no number.

    Args:
        save_every: steps between two checkpoints; an epoch's by default.
        keep: how many of the last checkpoints.
        workers: processes that read images; 0 for none.
        skip_broken: go on without images that cannot be read.
        tensorboard: write TensorBoard's events too.
        engine: options of the framework's engine.
    """

    save_every: int | None = None
    keep: int = 1
    workers: int = 0
    skip_broken: bool = False
    tensorboard: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)


USUAL = Options()


class Run:
    """A training run in a folder.

    Made by :func:`begin` or :func:`resume`; :meth:`to` runs it.

    Attributes:
        folder: of the run.
        at: where it stands.
        plan: what is to be done.
        engine: what does it.
        notes: what was new or changed in the weights that it starts from.
    """

    def __init__(
        self,
        folder: Path,
        data: Data,
        backend: Backend,
        at: Progress,
        arrays: State,
        options: Options,
        *,
        notes: Sequence[str] = (),
        saved: bool = False,
    ) -> None:
        self.folder, self.data, self.backend, self.at = folder, data, backend, at
        self.notes = tuple(notes)
        self._saved = at.step if saved else -1  # as what is in the folder
        self.plan = Plan(at.recipe, at.images, len(at.classes))
        self.options = options
        self.engine: Engine = create_engine(
            backend, self.plan, plain(arrays), **options.engine
        )
        if at.step:
            self.engine.restore(arrays, at.step)

    def to(
        self, stop_at: int | None = None, *, watch: Watch = lambda seen: None
    ) -> Outcome:
        """Runs to the end of the recipe, or to a step, and saves there.

        Ctrl-C and SIGTERM end it after the step that it is in, and it saves; a second
        one ends it at once.

        Args:
            stop_at: steps that shall be done then.
            watch: told how it goes.

        Raises:
            InputError: an image cannot be read.
            ValueError: the loss is no longer a number.
        """
        end = min(stop_at or self.plan.steps, self.plan.steps)
        if end < self.at.step:
            raise ValueError(
                f"stop-at is {end}, and {self.at.step} steps are done; it must be more"
            )
        loader = Loader(
            self.data.train,
            self.plan.recipe,
            workers=self.options.workers,
            rank=self.engine.rank,
            ranks=self.engine.ranks,
            skip_broken=self.options.skip_broken,
        )
        try:
            with loader, _Book(self) as book, _asked_to_end() as signals:
                return self._steps(end, loader, book, signals, watch)
        finally:
            self.engine.close()

    def _steps(
        self,
        end: int,
        loader: Loader,
        book: _Book,
        signals: Sequence[int],
        watch: Watch,
    ) -> Outcome:
        start, begun, waited, first = time.monotonic(), self.at.step, 0.0, 0.0
        step, accuracy, rate = begun, -1.0, 0.0
        period = self.options.save_every or math.ceil(self.plan.steps_of_epoch)
        batches = iter(loader.batches(begun, end))
        while step < end and not self.engine.any(bool(signals)):
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            book.note(step + 1, self.engine.step(batch))
            step += 1
            if step == begun + 1:
                book.settle()
                first, start, waited = time.monotonic() - start, time.monotonic(), 0.0
            if self.plan.evaluates(step):
                book.settle()
                counts = self._evaluate(loader)
                accuracy = book.evaluated(step, counts)
            if step % period == 0 and step < end:
                book.save(step)
            passed = time.monotonic() - start
            rate = (step - begun - 1) * self.plan.recipe.batch / max(passed, 1e-9)
            said = accuracy if accuracy >= 0 else None
            watch(Seen(step, self.plan.steps, book.loss, said, rate, first))
        book.settle()
        if self._saved != step:
            book.save(step)
        book.finish(step)
        return Outcome(
            step=step,
            done=step >= self.plan.steps,
            best=self.at.best,
            best_step=self.at.best_step,
            last=accuracy,
            skipped=tuple(loader.skipped),
            signal=signals[0] if signals else 0,
            waited=waited,
            seconds=time.monotonic() - start,
            first=first,
            images_per_second=rate,
        )

    def _evaluate(self, loader: Loader) -> Counts:
        batches = loader.evaluation(self.data.validation)
        return self.engine.counted([self.engine.evaluate(batch) for batch in batches])


class _Book:
    """What a run writes into its folder; on the first process only.

    Checkpoints are written by a thread from copies, while the next steps are computed;
    the best weights before the checkpoint that knows of them.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._writes = run, run.engine.rank == 0
        self._waiting: list[tuple[int, Any]] = []
        self.loss = math.nan
        self._thread = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []
        self._metrics: Metrics | None = None

    def __enter__(self) -> _Book:
        run = self._run
        if self._writes:
            checkpoint.forget_later(run.folder, run.at.step)
            self._metrics = Metrics(
                run.folder, run.at.step, tensorboard=run.options.tensorboard
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(wait=True)
        if self._metrics is not None:
            self._metrics.close()

    def note(self, step: int, loss: Any) -> None:
        """Takes a step's loss, as the engine returns it."""
        self._waiting.append((step, loss))
        if len(self._waiting) >= _LOSSES_AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Writes the losses that are waiting.

        Raises:
            ValueError: one is no number.
        """
        steps = [step for step, _ in self._waiting]
        losses = self._run.engine.losses([loss for _, loss in self._waiting])
        self._waiting.clear()
        plan, lines = self._run.plan, []
        for step, loss in zip(steps, losses, strict=True):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss of step {step} is {loss}")
            rate = plan.optimizer.schedule.at(step - 1)
            line = {"step": step, "epoch": plan.epoch(step), "loss": loss}
            lines.append({**line, "learning_rate": rate})
        if losses:
            self.loss = sum(losses) / len(losses)
        self._write(lines)

    def evaluated(self, step: int, counts: Counts) -> float:
        """Takes an evaluation; returns the accuracy."""
        run = self._run
        accuracy = counts.right / max(counts.images, 1)
        line = {"step": step, "epoch": run.plan.epoch(step)}
        mean = counts.loss / max(counts.images, 1)
        line |= {"validation_loss": mean, "validation_accuracy": accuracy}
        self._write([{**line, "right": counts.right, "images": counts.images}])
        if accuracy > run.at.best:
            run.at = replace(run.at, best=accuracy, best_step=step)
            state = run.engine.deployed()
            if self._writes:
                at = replace(run.at, step=step, evaluated=True)
                self._soon(run.folder / BEST, state, at)
        return accuracy

    def save(self, step: int) -> None:
        """Saves all that the next step depends on."""
        self.settle()  # so that no line is missing that the checkpoint is ahead of
        run = self._run
        run.at, run._saved = replace(run.at, step=step), step
        arrays = run.engine.arrays()
        if self._writes:
            self._soon(run.folder / LAST, arrays, run.at)

    def finish(self, step: int) -> None:
        """Waits until all is written, and draws the curves."""
        self._wait()
        if not self._writes:
            return
        recipe, at = self._run.plan.recipe, self._run.at
        best = f"{at.best:.2%} after step {at.best_step}" if at.best >= 0 else "none"
        facts = {
            "steps": f"{step} of {self._run.plan.steps}",
            "best validation accuracy": best,
            "recipe": recipe.to_json(),
            "recipe's sha256": recipe.sha256,
            "data's fingerprint": at.data,
            "versions": ", ".join(f"{k} {v}" for k, v in at.versions.items()),
        }
        title = f"{recipe.network}: {step} of {self._run.plan.steps} steps"
        with suppress(ModuleNotFoundError):  # an extra; the numbers are all there
            write_picture(self._run.folder, title, facts)

    def _soon(self, path: Path, arrays: State, at: Progress) -> None:
        self._wait()  # so that there is one copy at most

        def write() -> None:
            try:
                checkpoint.write(path, arrays, self._run.plan.config, at)
            except CheckpointError as error:
                what = f"after step {at.step} the weights are no numbers"
                raise self._diverged(what) from error
            if path.name == LAST:
                checkpoint.keep(path.parent, at.step, self._run.options.keep)

        self._pending.append(self._thread.submit(write))

    def _diverged(self, what: str) -> ValueError:
        saved = self._run.folder / LAST
        kept = f"; {saved} is as it was saved" if saved.exists() else ""
        return ValueError(
            f"{what}: the run has diverged. Use a lower --lr or a longer warm-up{kept}"
        )

    def _wait(self) -> None:
        while self._pending:
            self._pending.pop(0).result()

    def _write(self, lines: Sequence[Line]) -> None:
        if self._metrics is not None:
            self._metrics.write(lines)


@contextmanager
def _asked_to_end() -> Iterator[list[int]]:
    """Yields a list that gets the number of a signal that asks to end."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        asked.append(number)
        for one, handler in before.items():  # a second one ends it at once
            signal.signal(one, handler)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
