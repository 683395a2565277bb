"""The Flax twin in training. The mirror of ``engine_torch.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.weights.changes import cast
from parity.weights.names import to_flax, to_torch, torch_name
from parity.weights.state import entries, load_state_dict, state_dict
from parity.weights.twins import abstract_flax
from resnet_flax.optim import create_optimizer, train_step
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
from resnet_training.ranks_flax import Ranks
from resnet_training.slots import slots_of

Arrays = dict[str, Any]


class FlaxEngine(Engine):
    """The Flax twin, its optimiser, and the average of its weights.

    Args:
        plan: what is trained.
        state: that the network starts from, in float32.
        devices: that it computes on, in each process; all by default.
        coordinator: host and port of the first process, if there are several; or
            ``"auto"``, where a cluster says all that follows.
        processes: how many there are.
        process: which of them this is, from 0.
    """

    def __init__(
        self,
        plan: Plan,
        state: State,
        *,
        devices: int | None = None,
        coordinator: str | None = None,
        processes: int | None = None,
        process: int | None = None,
    ) -> None:
        super().__init__(plan)
        recipe = plan.recipe
        self._all = Ranks(recipe, devices, coordinator, processes, process)
        self.rank, self.ranks = self._all.rank, self._all.ranks
        self._kind = "float64" if recipe.dtype == "float64" else "float32"
        half = "bfloat16" if recipe.dtype == "bfloat16" else None
        with self._x64():
            model = abstract_flax(plan.config, dtype=half, param_dtype=self._kind)
            load_state_dict(model, cast(state, self._kind))
            model.train()
            model.seed_drops(recipe.seed)
            optimizer = create_optimizer(model, plan.optimizer)
            self._graph, own = nnx.split((model, optimizer))
            self._average = None
            if recipe.ema_decay:
                average = jax.tree.map(jnp.copy, nnx.state(model))
                self._average = self._all.everywhere(average)
            self._state = self._all.everywhere(own)
            model.eval()
            self._evaluated = nnx.graphdef(model)
        self._steps = 0
        self._learn = self._all.jit_step(self._one)
        self._blend = self._all.jit(self._blended)
        self._count = self._all.jit(self._counts, donate=False)

    @property
    def device(self) -> str:
        return self._all.name

    def step(self, batch: Batch) -> jax.Array:
        recipe = self.plan.recipe
        with self._x64():
            self._state, loss = self._learn(self._state, self._placed(batch))
            self._steps += 1
            if self._average is not None and self._steps % recipe.ema_every == 0:
                self._average = self._blend(self._average, self._of_model())
        return loss

    def losses(self, found: Sequence[jax.Array]) -> list[float]:
        return [float(value) for value in jax.device_get(list(found))]

    def evaluate(self, batch: Batch) -> jax.Array:
        with self._x64():
            state = self._average if self._average is not None else self._of_model()
            return self._count(
                state, self._all.scattered(_filled(batch, self._all.own))
            )

    def counted(self, found: Sequence[jax.Array]) -> Counts:
        loss, right, images = (
            sum(map(float, column))
            for column in zip(*jax.device_get(list(found)), strict=True)
        )
        return Counts(loss, int(right), int(images))

    def network(self) -> State:
        return state_dict(nnx.merge(self._graph, self._state)[0])

    def remembered(self) -> State:
        model, optimizer = nnx.merge(self._graph, self._state)
        slots = slots_of(self.plan.optimizer)
        fields = {
            field: {
                name: to_torch(leaf, jax.device_get(variable.get_value()))
                for name, leaf, variable in _variables(values)
            }
            for field, values in _fields(optimizer.opt_state)
            if field in slots.values()
        }
        return {
            f"{slot}/{name}": fields[field][name]
            for slot, field in slots.items()
            for name in entries(model)
            if name in fields[field]
        }

    def averaged(self) -> State:
        if self._average is None:
            return {}
        return state_dict(nnx.merge(self._evaluated, self._average))

    def restore(self, arrays: Mapping[str, np.ndarray], step: int) -> None:
        slots = {field: slot for slot, field in slots_of(self.plan.optimizer).items()}
        with self._x64():
            model, optimizer = nnx.merge(self._graph, self._state)
            load_state_dict(model, plain(arrays))
            recipe = self.plan.recipe
            model.seed_drops(recipe.seed, step * recipe.accumulate)
            for field, values in _fields(optimizer.opt_state):
                if field == "count":
                    values.set_value(jnp.full_like(values.get_value(), step))
                elif field in slots:
                    saved = part(arrays, f"{OPTIMIZER}{slots[field]}/")
                    for name, leaf, variable in _variables(values):
                        # A copy: what is donated must be nobody else's.
                        array = jnp.array(to_flax(leaf, saved[name]), copy=True)
                        variable.set_value(array)
            count = optimizer.step.get_value()
            optimizer.step.set_value(jnp.full_like(count, step))
            self._state = self._all.everywhere(nnx.state((model, optimizer)))
            if self._average is not None:
                average = nnx.merge(self._evaluated, self._average)
                load_state_dict(average, part(arrays, AVERAGE))
                self._average = self._all.everywhere(nnx.state(average))
        self._steps = step

    def any(self, asked: bool) -> bool:
        return self._all.any(asked)

    def close(self) -> None:
        self._all.close()

    def _one(self, state: Any, batch: tuple[Arrays, Arrays]) -> tuple[Any, jax.Array]:
        recipe = self.plan.recipe
        model, optimizer = nnx.merge(self._graph, state)
        images, labels = self._prepared(batch)
        loss = train_step(
            model,
            self._all.spread(optimizer),
            images,
            labels,
            loss=recipe.loss,
            label_smoothing=recipe.label_smoothing,
            accumulate=recipe.accumulate,
        )
        self._all.share_statistics(model)
        loss = self._all.mean(loss)
        return nnx.state((model, optimizer)), loss

    def _counts(self, state: Any, batch: Arrays) -> jax.Array:
        model: Any = nnx.merge(self._evaluated, state)
        images, labels = batch["images"][0], batch["labels"][0]
        logits = model(self._pixels(images))
        logits = logits.reshape(len(logits), -1)
        real = labels >= 0
        log_p = jax.nn.log_softmax(logits.astype(self._kind))
        clamped = jnp.maximum(labels, 0)[:, None]
        of_label = jnp.take_along_axis(log_p, clamped, axis=1)[:, 0]
        loss = -jnp.where(real, of_label, 0.0).sum()
        right = (logits.argmax(1).astype(labels.dtype) == labels).sum()
        # Whole numbers are exact in float32 as far as any batch has images.
        return jnp.stack([loss, right.astype(loss.dtype), real.sum(dtype=loss.dtype)])

    def _blended(self, average: Any, own: Any) -> Any:
        decay = self.plan.recipe.ema_decay

        def one(average: jax.Array, own: jax.Array) -> jax.Array:
            if not jnp.issubdtype(own.dtype, jnp.floating):
                return own
            return decay * average + (1 - decay) * own

        return jax.tree.map(one, average, own)

    def _of_model(self) -> Any:
        return self._state[0]

    def _placed(self, batch: Batch) -> tuple[Arrays, Arrays]:
        """Returns what each image has, and what all have in common."""
        arrays: dict[str, Any] = {
            "images": batch.images,
            "labels": _int32(batch.labels),
            "erased": batch.erased,
        }
        common = {}
        if batch.partners is not None:
            arrays |= {
                "partners": batch.partners,
                "partner_labels": _int32(batch.partner_labels),
                "partners_erased": batch.partners_erased,
            }
            share = np.asarray(batch.share, self._kind)
            common = self._all.everywhere({"own": batch.own, "share": share})
        arrays = {k: v for k, v in arrays.items() if v is not None}
        return self._all.scattered(arrays, self.plan.recipe.accumulate), common

    def _prepared(self, batch: tuple[Arrays, Arrays]) -> tuple[jax.Array, jax.Array]:
        # Parts stay apart, each on all devices: one behind the other they would not be.
        several, common = batch
        if self.plan.recipe.accumulate > 1:
            return jax.vmap(self._of_part, in_axes=(0, None))(several, common)
        return self._of_part({name: x[0] for name, x in several.items()}, common)

    def _of_part(self, arrays: Arrays, common: Arrays) -> tuple[jax.Array, jax.Array]:
        images, labels = self._pixels(arrays["images"]), arrays["labels"]
        if "erased" in arrays:
            images = _erased(images, arrays["erased"])
        if "partners" not in arrays:
            return images, labels
        partners = self._pixels(arrays["partners"])
        if "partners_erased" in arrays:
            partners = _erased(partners, arrays["partners_erased"])
        own, share = common["own"].astype(self._kind), common["share"]
        own = own[None, :, :, None]
        images = own * images + (1 - own) * partners
        shares, theirs = (
            jax.nn.one_hot(some, self.plan.classes, dtype=self._kind)
            for some in (labels, arrays["partner_labels"])
        )
        return images, share * shares + (1 - share) * theirs

    def _pixels(self, images: jax.Array) -> jax.Array:
        """Returns images as the network takes them, normalised on the device."""
        recipe = self.plan.recipe
        mean, std = (
            jnp.asarray(v, self._kind).reshape(1, 1, 1, -1)
            for v in (recipe.mean, recipe.std)
        )
        # In this order, as torchvision does: no two of the steps commute.
        return (images.astype(self._kind) / 255 - mean) / std

    def _x64(self) -> AbstractContextManager[Any]:
        return jax.enable_x64(self._kind == "float64")


def _erased(images: jax.Array, rectangles: jax.Array) -> jax.Array:
    """Sets a rectangle (top, left, height, width) of each image to its mean, 0."""
    top, left, height, width = rectangles.T[:, :, None, None]
    rows = jnp.arange(images.shape[1], dtype=top.dtype)[None, :, None]
    columns = jnp.arange(images.shape[2], dtype=top.dtype)[None, None, :]
    inside = (rows >= top) & (rows < top + height)
    inside = inside & (columns >= left) & (columns < left + width)
    return jnp.where(inside[..., None], 0.0, images)


def _fields(state: Any) -> Iterator[tuple[str, Any]]:
    """Yields the fields of all named tuples of optax's state, wherever they are."""
    if isinstance(state, tuple):
        # An empty state is a tuple too, whose method is called count.
        fields: tuple[str, ...] = getattr(type(state), "_fields", None) or ()
        if fields:
            for name in fields:
                value = getattr(state, name)
                yield name, value
                yield from _fields(value)
        else:
            for value in state:
                yield from _fields(value)


def _variables(values: Any) -> Iterator[tuple[str, str, nnx.Variable[Any]]]:
    """Yields torch's name, the leaf's name and the variable of each parameter."""
    for path, variable in nnx.to_flat_state(values):
        own = ".".join(map(str, path))
        yield torch_name(own, {}), str(path[-1]), variable


def _filled(batch: Batch, devices: int) -> Arrays:
    """Returns images and labels, as many as so many devices can share."""
    missing = -len(batch.labels) % devices
    around = [(0, 0)] * (batch.images.ndim - 1)
    return {
        "images": np.pad(batch.images, [(0, missing), *around]),
        "labels": np.pad(_int32(batch.labels), (0, missing), constant_values=-1),
    }


def _int32(labels: Any) -> np.ndarray:
    """Returns labels as JAX has integers outside of x64 mode."""
    return labels.astype(np.int32)
