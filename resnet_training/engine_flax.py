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
from parity.weights.state import load_state_dict, state_dict
from parity.weights.twins import abstract_flax
from resnet_flax.optim import create_optimizer, train_step
from resnet_training.engine import AVERAGE, OPTIMIZER, Counts, Engine, State, part
from resnet_training.loader import Batch
from resnet_training.plan import Plan
from resnet_training.slots import slots_of

Arrays = dict[str, Any]


class FlaxEngine(Engine):
    """The Flax twin, its optimiser, and the average of its weights.

    Args:
        plan: what is trained.
        state: that the network starts from, in float32.
    """

    def __init__(self, plan: Plan, state: State) -> None:
        super().__init__(plan)
        recipe = plan.recipe
        self._kind = "float64" if recipe.dtype == "float64" else "float32"
        half = "bfloat16" if recipe.dtype == "bfloat16" else None
        with self._x64():
            model = abstract_flax(plan.config, dtype=half, param_dtype=self._kind)
            load_state_dict(model, cast(state, self._kind))
            model.train()
            optimizer = create_optimizer(model, plan.optimizer)
            self._graph, self._state = nnx.split((model, optimizer))
            self._seen, self._average = None, None
            if recipe.ema_decay:
                self._average = jax.tree.map(jnp.copy, nnx.state(model))
            model.eval()
            self._evaluated = nnx.graphdef(model)
        self._steps = 0
        self._learn = jax.jit(self._one, donate_argnums=0)
        self._blend = jax.jit(self._blended, donate_argnums=0)
        self._count = jax.jit(self._counts)

    @property
    def device(self) -> str:
        return str(jax.devices()[0]).lower()

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
            return self._count(state, jnp.asarray(batch.images), _int32(batch.labels))

    def counted(self, found: Sequence[jax.Array]) -> Counts:
        loss, right, images = (
            sum(map(float, column))
            for column in zip(*jax.device_get(list(found)), strict=True)
        )
        return Counts(loss, int(right), int(images))

    def arrays(self) -> State:
        model, optimizer = nnx.merge(self._graph, self._state)
        found = state_dict(model)
        fields = {
            field: {
                name: to_torch(leaf, jax.device_get(variable.get_value()))
                for name, leaf, variable in _variables(values)
            }
            for field, values in _fields(optimizer.opt_state)
            if field in slots_of(self.plan.optimizer).values()
        }
        for slot, field in slots_of(self.plan.optimizer).items():
            remembered = fields[field]
            for name in [name for name in found if name in remembered]:
                found[f"{OPTIMIZER}{slot}/{name}"] = remembered[name]
        if self._average is not None:
            averaged = state_dict(nnx.merge(self._evaluated, self._average))
            found |= {f"{AVERAGE}{name}": array for name, array in averaged.items()}
        return found

    def restore(self, arrays: Mapping[str, np.ndarray], step: int) -> None:
        plain = {name: array for name, array in arrays.items() if "/" not in name}
        slots = {field: slot for slot, field in slots_of(self.plan.optimizer).items()}
        with self._x64():
            model, optimizer = nnx.merge(self._graph, self._state)
            load_state_dict(model, plain)
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
            self._state = nnx.state((model, optimizer))
            if self._average is not None:
                average = nnx.merge(self._evaluated, self._average)
                load_state_dict(average, part(arrays, AVERAGE))
                self._average = nnx.state(average)
        self._steps = step

    def _one(self, state: Any, batch: Arrays) -> tuple[Any, jax.Array]:
        recipe = self.plan.recipe
        model, optimizer = nnx.merge(self._graph, state)
        images, labels = self._prepared(batch)
        loss = train_step(
            model,
            optimizer,
            images,
            labels,
            loss=recipe.loss,
            label_smoothing=recipe.label_smoothing,
            accumulate=recipe.accumulate,
        )
        return nnx.state((model, optimizer)), loss

    def _counts(self, state: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        model: Any = nnx.merge(self._evaluated, state)
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

    def _placed(self, batch: Batch) -> Arrays:
        arrays = {
            "images": batch.images,
            "labels": _int32(batch.labels),
            "erased": batch.erased,
        }
        if batch.partners is not None:
            arrays |= {
                "partners": batch.partners,
                "partner_labels": _int32(batch.partner_labels),
                "partners_erased": batch.partners_erased,
                "own": batch.own,
                "share": np.asarray(batch.share, self._kind),
            }
        return jax.device_put({k: v for k, v in arrays.items() if v is not None})

    def _prepared(self, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        images, labels = self._pixels(batch["images"]), batch["labels"]
        if "erased" in batch:
            images = _erased(images, batch["erased"])
        if "partners" not in batch:
            return images, labels
        partners = self._pixels(batch["partners"])
        if "partners_erased" in batch:
            partners = _erased(partners, batch["partners_erased"])
        own = batch["own"].astype(self._kind)[None, :, :, None]
        images = own * images + (1 - own) * partners
        shares, theirs = (
            jax.nn.one_hot(some, self.plan.classes, dtype=self._kind)
            for some in (labels, batch["partner_labels"])
        )
        return images, batch["share"] * shares + (1 - batch["share"]) * theirs

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


def _int32(labels: Any) -> np.ndarray:
    """Returns labels as JAX has integers outside of x64 mode."""
    return labels.astype(np.int32)
