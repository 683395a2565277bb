"""JAX's devices, of one process or of several. The mirror of ``ranks_torch.py``."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnet_spec import TrainingRecipe
from resnet_training.order import check_devices

Arrays = dict[str, Any]

DATA = "data"
_PART = PartitionSpec(None, DATA)  # parts one behind the other, each on all devices
_LATER = 2


class Ranks:
    """The processes that train together, of which this is one, and their devices.

    Args:
        recipe: of the run.
        devices: of each process; all that it finds by default. On a CPU they are made.
        coordinator: host and port of the first process, if there are several.
        processes: how many these are.
        process: which of them this is, from 0.

    Raises:
        ValueError: the recipe is for another number of devices, or they are not there.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        devices: int | None = None,
        coordinator: str | None = None,
        processes: int | None = None,
        process: int | None = None,
    ) -> None:
        _make(devices)
        _join(coordinator, processes, process)
        self.rank, self.ranks = jax.process_index(), jax.process_count()
        own = devices or jax.local_device_count()
        check_devices(recipe, own * self.ranks)
        chosen = [
            device
            for index in range(self.ranks)
            for device in jax.local_devices(process_index=index)[:own]
        ]
        if len(chosen) < own * self.ranks:
            raise ValueError(
                f"devices is {devices}; this process has {jax.local_device_count()} "
                f"({jax.default_backend()})"
            )
        self.own, self.mesh = own, Mesh(np.array(chosen), (DATA,))
        self._whole = NamedSharding(self.mesh, PartitionSpec())
        self._groups = recipe.groups
        self._votes: deque[jax.Array] = deque()
        self._most = jax.jit(jnp.max, out_shardings=self._whole)

    def jit(
        self, function: Callable[..., Any], *, donate: bool = True
    ) -> Callable[..., Any]:
        """Compiles a function of a state, which all devices have, and of a batch.

        The statistics of a norm are those of the whole batch, as it is one array.
        """
        donated = 0 if donate else ()
        return jax.jit(function, donate_argnums=donated, out_shardings=self._whole)

    def jit_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same; with groups, each device has a norm's statistics of its own part.

        There, the function is to call what follows.
        """
        if self._groups:
            function = jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(PartitionSpec(), (_PART, PartitionSpec())),
                out_specs=PartitionSpec(),
                check_vma=False,
            )
        return self.jit(function)

    def spread(self, optimizer: nnx.Optimizer[Any]) -> Any:
        """Returns an optimiser that takes the mean of all devices' gradients."""
        return _Spread(optimizer) if self._groups else optimizer

    def share_statistics(self, model: nnx.Module) -> None:
        """Gives a model the first device's statistics, where each has its own."""
        if self._groups:
            first = jax.lax.axis_index(DATA) == 0

            def of_first(value: jax.Array) -> jax.Array:
                return jax.lax.psum(
                    jnp.where(first, value, 0).astype(value.dtype), DATA
                )

            nnx.update(model, jax.tree.map(of_first, nnx.state(model, nnx.BatchStat)))

    def mean(self, loss: jax.Array) -> jax.Array:
        """Returns the mean over all devices."""
        return jax.lax.pmean(loss, DATA) if self._groups else loss

    def everywhere(self, tree: Any) -> Any:
        """Puts arrays on all devices, each the whole of them."""
        if self.ranks == 1:
            return jax.device_put(tree, self._whole)

        def put(x: Any) -> jax.Array:
            # A copy: what is donated must be nobody else's.
            copy = np.array(x)
            return jax.make_array_from_callback(
                copy.shape, self._whole, lambda index: copy[index]
            )

        return jax.tree.map(put, tree)

    def scattered(self, arrays: Arrays, parts: int = 1) -> Arrays:
        """Puts this process's images on its devices: (parts, images of a part, …)."""
        sharding = NamedSharding(self.mesh, _PART)

        def put(x: np.ndarray) -> jax.Array:
            x = x.reshape(parts, -1, *x.shape[1:])
            if self.ranks == 1:
                return jax.device_put(x, sharding)
            shape = (parts, x.shape[1] * self.ranks, *x.shape[2:])
            return jax.make_array_from_process_local_data(sharding, x, shape)

        return {name: put(array) for name, array in arrays.items()}

    def any(self, asked: bool) -> bool:
        """Says whether any process asks; the same to all of them, at the same call.

        It says so a few calls later: to ask for what has just begun would be to wait
        for the step.
        """
        if self.ranks == 1:
            return asked
        vote = np.full(self.own, asked, np.int32)
        sharding = NamedSharding(self.mesh, PartitionSpec(DATA))
        shape = (self.mesh.size,)
        votes = jax.make_array_from_process_local_data(sharding, vote, shape)
        self._votes.append(self._most(votes))
        return len(self._votes) > _LATER and bool(np.asarray(self._votes.popleft()))

    def close(self) -> None:
        """Lets go of the other processes."""
        if self.ranks > 1:
            jax.distributed.shutdown()

    @property
    def name(self) -> str:
        """What is computed on, in words."""
        first = self.mesh.devices.flat[0]
        many = self.mesh.size > 1
        return f"{self.mesh.size} x {first.platform}" if many else str(first).lower()


class _Spread:
    """An optimiser that takes the mean of all devices' gradients."""

    def __init__(self, optimizer: nnx.Optimizer[Any]) -> None:
        self._optimizer = optimizer

    def update(self, model: nnx.Module, gradients: Any) -> None:
        self._optimizer.update(model, jax.lax.pmean(gradients, DATA))


def _make(devices: int | None) -> None:
    """Makes a CPU so many devices, if nothing has been computed on it yet."""
    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if devices in (None, 1) or given:
        return
    with suppress(RuntimeError):  # too late: whoever looks for them says what there is
        jax.config.update("jax_num_cpu_devices", devices)


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Meets the other processes, if there are any."""
    numbers, found = (processes, process), coordinator == "auto"
    if coordinator is None and numbers == (None, None):
        return
    if coordinator is None or numbers.count(None) != (2 if found else 0):
        raise ValueError(
            f"coordinator is {coordinator!r}, processes {processes!r}, process "
            f"{process!r}; they go together, as --coordinator HOST:PORT --processes 2 "
            "--process 0, or --coordinator auto stands alone"
        )
    if jax.distributed.is_initialized():
        return
    if found:  # Slurm, Open MPI, Kubernetes or Cloud TPU say the rest
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(
            coordinator, processes, process, cluster_detection_method="deactivate"
        )
