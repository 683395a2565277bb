"""What is timed: a network, a task, a batch and a size of image; and sets of these."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import resnet_spec
from resnet_spec import ResNetConfig

Task = Literal["inference", "training"]
TASKS: tuple[Task, ...] = get_args(Task)

Device = Literal["cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)

PROGRAMS = ("resnet18", "resnet50", "resnet152")
DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


FLOAT64 = 72 * 2**30
"""Bytes of an accelerator's memory with which it trains resnext50 on 256 images in
float64: 54 GiB are kept for the backward pass."""

JUDGED: Mapping[Device, int] = {"cpu": 32, "cuda": 64}
"""The largest batch that the gate looks at: of hundreds of images, a float64 training
step takes more memory than machines have."""

# One or two of each kind, for a first answer.
FEW: Mapping[Task, tuple[str, ...]] = {
    "inference": (
        *("torch-eager", "torch-bf16", "flax-jit", "flax-winograd-fast"),
        *("torchvision-channels-last", "jax-resnet", "onnxruntime"),
        "product-torch",
    ),
    "training": (
        *("torch-channels-last", "flax-fast", "torchvision-channels-last"),
        "product-torch",
    ),
}
# More of each: what each twin is fastest by, and what deploys it.
BRIEF: Mapping[Task, tuple[str, ...]] = {
    "inference": (
        *FEW["inference"],
        *("torch-compiled-fused", "torch-onnxruntime", "torch-openvino"),
        *("flax-fused-fast", "jax-resnet-fast", "openvino"),
    ),
    "training": (*FEW["training"], "torch-compiled", "flax-jit"),
}
# These, and what else may be a library's fastest: where all modes would take long.
RIVALS: Mapping[Task, tuple[str, ...]] = {
    "inference": (
        *BRIEF["inference"],
        *("flax-onnxruntime", "flax-openvino"),
        *("torchvision", "torchvision-compiled"),
        *("flaxmodels", "flaxmodels-fast"),
    ),
    "training": (
        *BRIEF["training"],
        *("torchvision", "torchvision-compiled"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network on one kind of batch; all modes are timed on it in turn.

    Args:
        network: its name.
        config: its configuration as JSON, so that a case is plain data.
        task: ``"inference"``, or ``"training"``: forward, backward and SGD's step.
        batch: images in a batch.
        size: height and width.
        device: where all modes compute.
        modes: names of those to be timed; all if there are none.
        sweeps: what it is a point of, if it is there to see costs grow.
        seed: of weights, images and labels.
        judged_batch: the largest batch that the gate looks at; ``JUDGED`` by default.
    """

    network: str
    config: str
    task: Task
    batch: int
    size: tuple[int, int]
    device: Device = "cpu"
    modes: tuple[str, ...] = ()
    sweeps: tuple[str, ...] = ()
    seed: int = 0
    judged_batch: int | None = None

    @property
    def spec(self) -> ResNetConfig:
        """The network's configuration."""
        return ResNetConfig.from_json(self.config)

    @property
    def judged(self) -> Case:
        """What the gate looks at: this, on so many of its first images at most."""
        most = self.judged_batch or JUDGED[self.device]
        return replace(self, batch=min(self.batch, most))

    @property
    def key(self) -> str:
        """Its name in tables and files."""
        height, width = self.size
        words = [self.network, self.task, f"batch {self.batch}", f"{height}x{width}"]
        return " ".join([*words, *([self.device] if self.device != "cpu" else [])])

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        lists = {
            name: list(getattr(self, name)) for name in ("size", "modes", "sweeps")
        }
        return asdict(self) | lists | {"key": self.key}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run of the benchmarks.

    Args:
        name: the profile's.
        cases: what is timed, in order.
        repeats: measured repetitions of each mode.
        warm_up: repetitions before these; five, since the first after a compile are
            slow.
        seconds: measured repetitions of a case stop after so long, but not below seven;
            never if ``None``.
        sizes: networks whose files are converted.
        programs: networks that are compiled and exported, timed once.
    """

    name: str
    cases: tuple[Case, ...]
    repeats: int
    warm_up: int = 5
    seconds: float | None = 60.0
    sizes: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()


def case(
    network: str,
    task: Task = "inference",
    batch: int = 1,
    size: tuple[int, int] | None = None,
    *,
    device: Device = "cpu",
    modes: tuple[str, ...] = (),
    sweeps: tuple[str, ...] = (),
    config: ResNetConfig | None = None,
) -> Case:
    """Makes a case, checked.

    Args:
        network: a name from ``resnet_spec.list_models()``, or any, with ``config``.
        task: what is timed.
        batch: images in a batch.
        size: height and width; by default the network's own.
        device: where.
        modes: to be timed; all if there are none.
        sweeps: what it is a point of.
        config: of a network without a name.

    Raises:
        ValueError: there is no such network, or the images do not fit it.
    """
    config = config or resnet_spec.get_config(network)
    size = size or config.natural_size
    config.check_size(*size)
    if batch < 1 or (task == "training" and batch < 2):
        least = "2, for the batch's statistics" if task == "training" else "1"
        raise ValueError(f"batch is {batch}; it must be at least {least}")
    return Case(
        network=network,
        config=config.to_json(),
        task=task,
        batch=batch,
        size=size,
        device=device,
        modes=modes,
        sweeps=sweeps,
    )


def grid(
    networks: Sequence[str],
    tasks: Sequence[Task],
    batches: Sequence[int],
    size: tuple[int, int] | None,
    device: Device,
) -> tuple[Case, ...]:
    """Returns networks × tasks × batches; training starts at two images."""
    return tuple(
        case(network, task, batch, size, device=device)
        for network in networks
        for task in tasks
        for batch in batches
        if task == "inference" or batch > 1
    )


def quick(device: Device = "cpu") -> Plan:
    """The default: under two minutes on two cores."""
    if device == "cuda":
        cases = grid(("resnet50",), TASKS, (64,), None, device)
    else:
        cases = (
            case("resnet50", "inference", 1, modes=FEW["inference"]),
            case("resnet18", "training", 4, (128, 128), modes=FEW["training"]),
        )
    return Plan(
        name="quick",
        cases=cases,
        repeats=11,
        seconds=6.0,
        sizes=("resnet18",),
    )


def full(device: Device = "cpu") -> Plan:
    """resnet50 in every mode, what is fast on more, and how costs grow.

    Half an hour and more on two cores.
    """
    if device == "cuda":
        return Plan(
            name="full",
            cases=grid(("resnet50",), TASKS, (64, 128, 256, 512), None, device),
            repeats=25,
        )
    cases = (
        case("resnet50", "inference", 1),
        case("resnet50", "inference", 8, modes=RIVALS["inference"]),
        case("resnet50", "training", 8, modes=RIVALS["training"]),
        case("resnext50_32x4d", "inference", 4, modes=BRIEF["inference"]),
        case("resnext50_32x4d", "training", 4, modes=BRIEF["training"]),
        *growth(),
    )
    return Plan(
        name="full",
        cases=cases,
        repeats=11,
        seconds=30.0,
        sizes=DEPTHS,
        programs=PROGRAMS,
    )


def growth(device: Device = "cpu") -> tuple[Case, ...]:
    """Cases that differ in one thing: batch 1 to 32, depth, resolution 128 to 320.

    Where two sweeps cross is one case.
    """
    sweeps: dict[tuple[str, int, int], tuple[str, ...]] = {}
    for sweep, *points in (
        ("batch", *(("resnet18", batch, 224) for batch in (1, 2, 4, 8, 16, 32))),
        ("depth", *((network, 1, 224) for network in DEPTHS)),
        ("size", *(("resnet18", 4, side) for side in (128, 160, 192, 224, 256, 320))),
    ):
        for point in points:
            sweeps[point] = (*sweeps.get(point, ()), sweep)
    return tuple(
        case(
            *(network, "inference", batch, (side, side)),
            device=device,
            sweeps=found,
        )
        for (network, batch, side), found in sweeps.items()
    )


def only_growth(device: Device = "cpu") -> Plan:
    """How costs grow, and nothing else."""
    return Plan(
        name="growth",
        cases=growth(device),
        repeats=9,
        seconds=20.0,
        sizes=DEPTHS,
        programs=PROGRAMS,
    )


def accelerator(device: Device = "cuda") -> Plan:
    """What an accelerator does in each arithmetic, what matters most first.

    Batches of 256 come first: what an accelerator is for. Where its memory holds them
    in float64, the gate judges them as they are. On a CPU the same in small, to try it.
    """
    if device == "cpu":
        cases = tuple(
            case("resnet18", task, 2, (64, 48), modes=("torch-eager", "flax-jit"))
            for task in TASKS
        )
        return Plan(name="accelerator", cases=cases, repeats=7, warm_up=1)
    whole = device_memory() > FLOAT64
    cases = tuple(
        replace(
            case(network, task, batch, device=device, modes=_accelerated(ending, task)),
            judged_batch=batch if whole else None,
        )
        for ending, network in (
            ("-bf16", "resnet50"),
            ("-bf16", "resnext50_32x4d"),
            ("-tf32", "resnet50"),
            ("-tf32", "resnext50_32x4d"),
            ("", "resnet50"),
            ("", "resnext50_32x4d"),
        )
        for batch in (256, 64)
        for task in ("training", "inference")
    )
    return Plan(name="accelerator", cases=cases, repeats=31, seconds=6.0)


def _accelerated(ending: str, task: Task) -> tuple[str, ...]:
    """What people train and serve with there, in the arithmetic of these modes."""
    fused = (f"torch-compiled-fused{ending}", f"flax-fused{ending}")
    return (
        *(f"torch-compiled{ending}", f"flax{ending or '-jit'}"),
        *(fused if task == "inference" else ()),
        *(f"torchvision-compiled{ending}", f"product-torch{ending}"),
    )


def device_memory() -> int:
    """Returns the bytes of the first NVIDIA device's memory; 0 if there is none."""
    command = [
        "nvidia-smi",
        "--query-gpu=memory.total",
        "--format=csv,noheader,nounits",
    ]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(found.stdout.splitlines()[0]) * 2**20
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return 0


PROFILES = {
    "quick": quick,
    "full": full,
    "growth": only_growth,
    "accelerator": accelerator,
}
