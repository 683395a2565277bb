"""The torch twin in training. The mirror of ``engine_flax.py``."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.weights.changes import cast
from parity.weights.state import load_state_dict, state_dict
from parity.weights.torch_state import to_numpy, to_torch
from parity.weights.twins import abstract_torch
from resnet_torch.optim import create_optimizer, train_step
from resnet_training.engine import (
    AVERAGE,
    OPTIMIZER,
    Counts,
    Engine,
    State,
    part,
    plain,
)
from resnet_training.loader import Batch
from resnet_training.plan import Plan
from resnet_training.ranks_torch import Ranks
from resnet_training.slots import slots_of


class TorchEngine(Engine):
    """The torch twin, its optimiser, and the average of its weights.

    Args:
        plan: what is trained.
        state: that the network starts from, in float32.
        device: that it computes on; a GPU by default, if there is one. Of several
            processes, which ``torchrun`` starts, each has one of its own.
        compiled: whether ``torch.compile`` makes one program of the network.
    """

    def __init__(
        self,
        plan: Plan,
        state: State,
        *,
        device: str | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__(plan)
        recipe = plan.recipe
        self._all = Ranks(recipe, device)
        self.rank, self.ranks = self._all.rank, self._all.ranks
        self._device = self._all.device
        self._dtype = torch.float64 if recipe.dtype == "float64" else torch.float32
        kind = str(self._dtype).removeprefix("torch.")
        model = abstract_torch(plan.config, param_dtype=kind)
        load_state_dict(model, cast(state, kind))
        # Of images that lie as (n, h, w, c), as they are read.
        model = model.to(self._device, memory_format=torch.channels_last)
        self._model = model.train()
        self._model.seed_drops(recipe.seed)
        run = self._all.spread(model)
        self._run: Any = torch.compile(run, dynamic=False) if compiled else run
        self._optimizer = create_optimizer(model, plan.optimizer)
        self._average = copy.deepcopy(model).eval() if recipe.ema_decay else None
        self._steps, self._shared = 0, False
        self._mean, self._std = (
            torch.tensor(v, dtype=self._dtype, device=self._device).view(1, -1, 1, 1)
            for v in (recipe.mean, recipe.std)
        )

    @property
    def device(self) -> str:
        return self._all.name

    def step(self, batch: Batch) -> Tensor:
        recipe = self.plan.recipe
        images, labels = self._prepared(batch)
        with self._cast():  # around the backward pass too, as the forward one
            loss = train_step(
                self._run,
                self._optimizer,
                images,
                labels,
                loss=recipe.loss,
                label_smoothing=recipe.label_smoothing,
                accumulate=recipe.accumulate,
            )
        self._steps += 1
        self._shared = False
        if self._average is not None and self._steps % recipe.ema_every == 0:
            self._blend(self._average)
        return loss

    def losses(self, found: Sequence[Tensor]) -> list[float]:
        if not found:
            return []
        means = torch.stack(list(found)).double() / self.ranks
        return self._all.total(means).tolist()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        images, labels = self._pixels(batch.images), self._placed(batch.labels)
        model = self._average if self._average is not None else self._model.eval()
        if not self._shared:
            self._all.share_statistics(model)
            self._shared = True
        with self._cast():
            logits = model(images).flatten(1)
        self._model.train()
        real = labels >= 0
        log_p = logits.to(self._dtype).log_softmax(1)
        of_label = log_p.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        loss = -of_label.where(real, torch.zeros_like(of_label)).sum()
        right = (logits.argmax(1) == labels).sum()
        return torch.stack([loss.double(), right.double(), real.sum().double()])

    def counted(self, found: Sequence[Tensor]) -> Counts:
        total = self._all.total(torch.stack(list(found)).sum(0))
        loss, right, images = total.tolist()
        return Counts(loss, int(right), int(images))

    def network(self) -> State:
        return state_dict(self._model)

    def remembered(self) -> State:
        found = {}
        for slot in slots_of(self.plan.optimizer):
            for name, parameter in self._model.named_parameters():
                # Before its first step an optimiser remembers nothing.
                none = torch.zeros_like(parameter)
                value = self._optimizer.state[parameter].get(slot, none)
                found[f"{slot}/{name}"] = to_numpy(value).copy()
        return found

    def averaged(self) -> State:
        return {} if self._average is None else state_dict(self._average)

    def restore(self, arrays: Mapping[str, np.ndarray], step: int) -> None:
        load_state_dict(self._model, plain(arrays))
        config = self.plan.optimizer
        for slot in slots_of(config):
            values = part(arrays, f"{OPTIMIZER}{slot}/")
            for name, parameter in self._model.named_parameters():
                value = torch.empty_like(parameter)  # in the layout that it has
                value.copy_(to_torch(values[name]))
                self._optimizer.state[parameter][slot] = value
        for group in self._optimizer.param_groups:
            group["steps"], group["lr"] = step, config.schedule.at(step)
            if config.kind in ("adam", "adamw", "rmsprop"):
                for parameter in group["params"]:
                    count = torch.tensor(float(step))
                    self._optimizer.state[parameter]["step"] = count
        if self._average is not None:
            load_state_dict(self._average, part(arrays, AVERAGE))
        recipe = self.plan.recipe
        self._model.seed_drops(recipe.seed, step * recipe.accumulate)
        self._steps, self._shared = step, False

    def any(self, asked: bool) -> bool:
        return self._all.any(asked)

    def close(self) -> None:
        self._all.close()

    def _prepared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = self._pixels(batch.images), self._placed(batch.labels)
        if batch.erased is not None:
            images = _erased(images, self._placed(batch.erased))
        if batch.partners is None:
            return images, labels
        partners = self._pixels(batch.partners)
        if batch.partners_erased is not None:
            partners = _erased(partners, self._placed(batch.partners_erased))
        own = self._placed(batch.own).to(self._dtype)
        images = own * images + (1 - own) * partners
        others = self._placed(batch.partner_labels)
        classes = self.plan.classes
        shares, theirs = (
            nn.functional.one_hot(some, classes).to(self._dtype)
            for some in (labels, others)
        )
        return images, batch.share * shares + (1 - batch.share) * theirs

    def _pixels(self, images: np.ndarray) -> Tensor:
        """Returns images as the network takes them, normalised on the device."""
        pixels = self._placed(images).permute(0, 3, 1, 2).to(self._dtype)
        # In this order, as torchvision does: no two of the steps commute.
        return (pixels / 255 - self._mean) / self._std

    def _placed(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _cast(self) -> AbstractContextManager[Any]:
        if self.plan.recipe.dtype != "bfloat16":
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    @torch.no_grad()
    def _blend(self, average: nn.Module) -> None:
        decay = self.plan.recipe.ema_decay
        own = self._model.state_dict()
        for name, value in average.state_dict().items():
            if value.is_floating_point():
                value.mul_(decay).add_(own[name], alpha=1 - decay)
            else:
                value.copy_(own[name])


def _erased(images: Tensor, rectangles: Tensor) -> Tensor:
    """Sets a rectangle (top, left, height, width) of each image to its mean, 0."""
    top, left, height, width = rectangles.T[:, :, None, None]
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    columns = torch.arange(images.shape[3], device=images.device)
    inside = (rows >= top) & (rows < top + height)
    inside = inside & (columns >= left) & (columns < left + width)
    return images.masked_fill(inside[:, None], 0.0)
