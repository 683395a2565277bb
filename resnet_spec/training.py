"""How a network is trained: a recipe that holds whatever changes a number."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from resnet_spec.config import ResNetConfig
from resnet_spec.optim import OptimizerConfig, Rule, Schedule
from resnet_spec.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from resnet_spec.settings import Settings, as_plain, is_count, is_number
from resnet_spec.variants import resolve

Augment = Literal["none", "trivial", "randaugment"]
Crop = Literal["random-resized", "padded", "shifted", "none"]
Decay = Literal["constant", "milestones", "linear", "cosine"]
Dtype = Literal["float32", "float64", "bfloat16"]
Interpolation = Literal["bilinear", "bicubic"]
Loss = Literal["cross-entropy", "bce"]

CHOICES: Mapping[str, tuple[str, ...]] = {
    "augment": get_args(Augment),
    "crop": get_args(Crop),
    "decay": get_args(Decay),
    "dtype": get_args(Dtype),
    "interpolation": get_args(Interpolation),
    "loss": get_args(Loss),
}
"""What the fields of a recipe that are words may be."""

_COUNTS = ("size", "evaluation_crop", "batch", "repeats", "accumulate", "ema_every")
_UP_TO_ONE = (
    *("flip", "erasing", "label_smoothing", "warmup_factor", "gamma", "ema_decay"),
    *("drop_path",),
)
_FROM_ZERO = ("mixup", "cutmix", "learning_rate", "end_learning_rate", "warmup_epochs")
_MOST_SIDE, _MOST_BATCH, _MOST_STEPS = 2**12, 2**16, 2**24  # float32 counts so far


_ONLY_WITH: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "crop_scale": ("crop", ("random-resized",)),
    "crop_ratio": ("crop", ("random-resized",)),
    "augment_operations": ("augment", ("randaugment",)),
    "augment_magnitude": ("augment", ("randaugment",)),
    "milestones": ("decay", ("milestones",)),
    "gamma": ("decay", ("milestones",)),
    "end_learning_rate": ("decay", ("linear", "cosine")),
    "warmup_factor": ("warmup_epochs", ()),
    "ema_every": ("ema_decay", ()),
}
"""Field → what it is for: another field, and its values; ``()`` are all but 0."""


def unused(fields: Mapping[str, Any]) -> list[str]:
    """Returns the fields of a recipe that do nothing, for what others are."""
    return [
        name
        for name, (other, values) in _ONLY_WITH.items()
        if not (fields[other] in values if values else fields[other])
    ]


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe(Settings):
    """One training run, independent of framework, machine and data.

    Only what changes the numbers: no paths, devices, workers or writers of logs.
    Whatever is counted in epochs becomes steps when the number of images is known, and
    a step is one of the optimiser's. Batches are cut from the epochs one behind the
    other, so that none is short.

    Args:
        network: from ``resnet_spec.list_models()``.
        settings: of the network, other than the table's: a mapping, which is kept as
            pairs.
        weights: what training starts from: ``None`` for new weights; the digest of
            others is put here by the run, so that its sha256 tells them apart.
        batch: images of one step, over all devices.
        accumulate: parts that a batch is computed in, one behind the other; each has
            batch statistics of its own.
        epochs: length of the run; ``None`` if ``steps`` is given.
        steps: length of the run, instead of ``epochs``.
        seed: of new weights, order and augmentation.
        dtype: what is computed in. ``"bfloat16"``: parameters stay float32.
        norm: whose statistics batch normalisation takes, ``"global"`` for all of a
            batch, or ``"groups=k"`` for each of k parts alone, on k devices.
        size: side of the training images, in pixels.
        crop: what is taken of an image; ``"random-resized"``: a random part (Szegedy
            et al. 2014, arXiv 1409.4842), resized; ``"padded"``: black is put around,
            an eighth of the size on each side, then a square is cut at random (He et
            al. 2015, section 4.2); ``"shifted"``: the same, with the pixels at the rim
            instead of black; ``"none"``: resized to the square.
        crop_scale: area of the random part over that of the image, from and to.
        crop_ratio: its width over its height, from and to.
        flip: probability of a horizontal flip.
        augment: what changes its colours and shape; ``"trivial"``: TrivialAugmentWide
            (Müller and Hutter 2021, arXiv 2103.10158); ``"randaugment"`` (Cubuk et al.
            2019, arXiv 1909.13719).
        augment_operations: of RandAugment, for each image.
        augment_magnitude: of RandAugment, from 0 to 30.
        erasing: probability that a rectangle becomes the mean (arXiv 1708.04896).
        mixup: alpha of mixup (Zhang et al. 2017, arXiv 1710.09412); 0 is none.
        cutmix: alpha of cutmix (Yun et al. 2019, arXiv 1905.04899); 0 is none. With
            both, each batch has one of them, as likely as the other.
        repeats: how often an image is in a batch, augmented anew each time (Hoffer et
            al. 2019, arXiv 1901.09335); an epoch has the fewer images.
        interpolation: of what is resized.
        mean: subtracted from each channel, of values from 0 to 1.
        std: that the rest is divided by.
        evaluation_resize: short side that an image is resized to before its centre is
            cut out; ``None``: it is squeezed into the square.
        evaluation_crop: side of the square; the training size if ``None``.
        optimizer: what makes a step of a gradient: ``"sgd"``, ``"adam"``, ``"adamw"``,
            ``"rmsprop"`` or ``"lamb"``.
        learning_rate: before any decay.
        momentum: of sgd and rmsprop; this and the next ones are those of
            :class:`resnet_spec.OptimizerConfig`.
        nesterov: of sgd: step from where the momentum leads.
        weight_decay: times the parameter.
        no_decay: what does not decay, ``"norm"``, ``"bias"`` or both.
        betas: of adam, adamw and lamb.
        eps: of all but sgd.
        alpha: of rmsprop.
        centered: of rmsprop: take the root of the variance.
        clip_norm: most that the gradients' norm may be.
        decay: how the rate goes down; ``"milestones"``: times ``gamma`` at each;
            ``"linear"`` or ``"cosine"`` to ``end_learning_rate`` at the end of the run.
        milestones: parts of the run, as (1/3, 2/3).
        gamma: factor of one decay.
        end_learning_rate: where the line or the cosine ends.
        warmup_epochs: in which the rate rises linearly.
        warmup_factor: the first rate over ``learning_rate``.
        loss: what becomes less; cross-entropy, or ``"bce"``: the classes' binary ones
            (Wightman et al. 2021, arXiv 2110.00476).
        label_smoothing: of the loss.
        drop_path: probability with which the last block is left out; that of the others
            rises to it linearly (Huang et al. 2016, arXiv 1603.09382).
        ema_decay: of the average of the weights that is evaluated; 0 is none. Norms'
            statistics are averaged too.
        ema_every: steps between two updates of it.
        evaluate_every: epochs between two evaluations, the last step aside.

    Raises:
        ValueError: a field has a value that no run can have, or two fields contradict
            each other. The message names field, value and what is allowed.
    """

    network: str = "resnet50"
    settings: tuple[tuple[str, Any], ...] = ()
    weights: str | None = None
    batch: int = 32
    accumulate: int = 1
    epochs: float | None = 20.0
    steps: int | None = None
    seed: int = 0
    dtype: Dtype = "float32"
    norm: str = "global"
    size: int = 224
    crop: Crop = "random-resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    augment: Augment = "none"
    augment_operations: int = 2
    augment_magnitude: int = 9
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    evaluation_resize: int | None = 256
    evaluation_crop: int | None = None
    optimizer: Rule = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float | None = None
    no_decay: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    alpha: float = 0.99
    centered: bool = False
    clip_norm: float | None = None
    decay: Decay = "constant"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    end_learning_rate: float = 0.0
    warmup_epochs: float = 0.0
    warmup_factor: float = 0.01
    loss: Loss = "cross-entropy"
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    ema_decay: float = 0.0
    ema_every: int = 1
    evaluate_every: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if isinstance(value, int) and one.type in ("float", "float | None"):
                self._check(one.name, is_number(value), "a number, 0 or more")
                self._set(one.name, float(value))
        for name, choices in CHOICES.items():
            known = isinstance(getattr(self, name), str)
            known = known and getattr(self, name) in choices
            self._check(name, known, f"one of {', '.join(map(repr, choices))}")
        self._set("settings", _pairs(self.settings))
        self._check("settings", self.settings is not None, "settings by name")
        for name in ("num_classes", "drop_path_rate"):
            if name in dict(self.settings):
                other = "the data decide" if name == "num_classes" else "is drop_path"
                raise ValueError(f"settings has {name}, which {other}; leave it out")
        text = self.weights is None or isinstance(self.weights, str)
        self._check("weights", text, "a text, or None")
        self._check_lengths()
        for name in _UP_TO_ONE:
            self._check_number(name, 1)
        for name in _FROM_ZERO:
            self._check_number(name)
        for name, least in (("drop_path", "below 1"), ("ema_decay", "below 1")):
            self._check(name, getattr(self, name) < 1, f"a number from 0, {least}")
        for name, most in (("augment_operations", 8), ("augment_magnitude", 30)):
            value = getattr(self, name)
            fits = (value == 0 or is_count(value)) and not isinstance(value, bool)
            self._check(name, fits and value <= most, f"an integer from 0 to {most}")
        for name in ("crop_scale", "crop_ratio"):
            pair = getattr(self, name)
            fits = isinstance(pair, tuple) and len(pair) == 2
            fits = fits and all(map(is_number, pair)) and 0 < pair[0] <= pair[1]
            fits = fits and (name == "crop_ratio" or pair[1] <= 1)
            self._check(
                name, fits, "two numbers above 0, the second not below the first"
            )
            self._set(name, tuple(map(float, pair)))
        for name, least in (("mean", 0), ("std", 1e-6)):
            values = getattr(self, name)
            fits = isinstance(values, tuple) and len(values) in (1, 3)
            fits = fits and all(is_number(v) and least <= v <= 1 for v in values)
            self._check(
                name, fits, "one number for each channel, of values from 0 to 1"
            )
            self._set(name, tuple(map(float, values)))
        same = len(self.mean) == len(self.std)
        self._check("std", same, f"as many numbers as mean has, {len(self.mean)}")
        fits = isinstance(self.milestones, tuple) and len(self.milestones) <= 64
        fits = fits and all(is_number(m) and 0 < m < 1 for m in self.milestones)
        fits = fits and all(a < b for a, b in pairwise(self.milestones))
        self._check("milestones", fits, "rising parts of the run, between 0 and 1")
        given = self.decay != "milestones" or self.milestones != ()
        self._check("milestones", given, "given with decay 'milestones'")
        self._check_unused()
        self._check_network()
        self.optimizer_config(2**20)  # refuses what no optimiser has

    def _check_unused(self) -> None:
        usual = {one.name: one.default for one in dataclasses.fields(self)}
        for name in unused(vars(self)):
            other, _ = _ONLY_WITH[name]
            why = f"with {other} {getattr(self, other)!r}, which ignores it"
            left = getattr(self, name) == usual[name]
            self._check(name, left, f"{usual[name]!r} {why}")
        together = self.norm == "global" or self.drop_path == 0
        alone = f"0 with norm {self.norm!r}: parts are left out on one device alone"
        self._check("drop_path", together, alone)

    def _check_lengths(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if name == "evaluation_crop" and value is None:
                continue
            most = _MOST_BATCH if name == "batch" else _MOST_SIDE
            fits = is_count(value) and value <= most
            self._check(name, fits, f"an integer from 1 to {most}")
        if self.evaluation_resize is not None:
            fits = is_count(self.evaluation_resize)
            fits = fits and self.centre <= self.evaluation_resize <= _MOST_SIDE
            least = f"an integer from evaluation_crop, {self.centre}, or None"
            self._check("evaluation_resize", fits, least)
        seed = isinstance(self.seed, int) and 0 <= self.seed < 2**32
        seed = seed and not isinstance(self.seed, bool)
        self._check("seed", seed, f"an integer from 0 to {2**32 - 1}")
        if self.steps is not None:
            fits = is_count(self.steps) and self.steps <= _MOST_STEPS
            self._check("steps", fits, f"an integer from 1 to {_MOST_STEPS}, or None")
            self._check("epochs", self.epochs is None, "None where steps are given")
        else:
            fits = is_number(self.epochs) and 0 < (self.epochs or 0) <= 1e6
            self._check(
                "epochs", fits, "a number above 0, or None where steps are given"
            )
        fits = is_number(self.evaluate_every) and self.evaluate_every > 0
        self._check("evaluate_every", fits, "a number above 0")
        parts = self.batch % self.accumulate == 0
        self._check("accumulate", parts, f"a divisor of batch, {self.batch}")
        fits = self.norm == "global" or self.groups > 0
        self._check("norm", fits, "'global' or 'groups=K'")
        part = self.batch // self.accumulate
        fits = part % max(self.groups, 1) == 0
        self._check("norm", fits, f"of groups that divide {part} images")
        few = self.repeats <= self.batch
        self._check("repeats", few, f"at most batch, {self.batch}")
        # One would be half of itself and half of its neighbour.
        mixes = self.mixup == self.cutmix == 0 or self.batch > 1
        self._check("batch", mixes, "above 1 with mixup or cutmix")

    def _check_network(self) -> None:
        config = self.config(2)
        channels = f"one number for each of the network's {config.in_channels} channels"
        self._check("mean", len(self.mean) == config.in_channels, channels)
        for side in (self.size, self.centre):
            config.check_size(side, side)

    @property
    def centre(self) -> int:
        """Side of the images that are evaluated."""
        return self.evaluation_crop or self.size

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to a photograph before it is evaluated.

        Raises:
            ValueError: its network takes no photographs in colour.
        """
        mean, std = (tuple(map(float, v)) for v in (self.mean, self.std))
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"mean is {mean}; a photograph has three channels")
        return Preprocessing(
            resize=self.evaluation_resize,
            crop=self.centre,
            interpolation=self.interpolation,
            mean=mean,
            std=std,
        )

    @property
    def groups(self) -> int:
        """Parts of a batch with statistics of their own; 0 for global ones."""
        kind, _, count = self.norm.partition("=") if isinstance(self.norm, str) else ""
        digits = kind == "groups" and count.isascii() and count.isdigit()
        return int(count) if digits and len(count) < 6 else 0

    def config(self, num_classes: int) -> ResNetConfig:
        """Returns the network, for so many classes."""
        return resolve(
            self.network,
            **{
                "num_classes": num_classes,
                "drop_path_rate": self.drop_path,
                **dict(self.settings),
            },
        )

    def total_steps(self, images: int) -> int:
        """Returns the length of the run over a number of images."""
        if self.steps is not None:
            return self.steps
        # Less a roundoff: 0.1 epochs of 1,000 images are 100, not 101.
        return max(1, math.ceil((self.epochs or 0) * images / self.batch - 1e-9))

    def optimizer_config(
        self, steps: int, steps_of_epoch: float = 1.0
    ) -> OptimizerConfig:
        """Returns the optimiser of a run.

        Args:
            steps: length of the run.
            steps_of_epoch: images over batch.

        Raises:
            ValueError: the warm-up is longer than the run.
        """
        warmup = round(self.warmup_epochs * steps_of_epoch)
        if warmup >= steps and self.decay != "constant":
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g}, {warmup} steps; it must be "
                f"shorter than the run of {steps}"
            )
        schedule: dict[str, Any] = {"warmup_steps": warmup}
        if self.decay == "milestones":
            at = [round(part * steps) for part in self.milestones]
            rising = all(a < b for a, b in pairwise(at)) and at[0] >= max(warmup, 1)
            self._check(
                "milestones", rising, f"further apart in a run of {steps} steps"
            )
            schedule |= {"milestones": tuple(at), "gamma": self.gamma}
        elif self.decay != "constant":
            schedule["total_steps"] = steps
            schedule["end_learning_rate"] = self.end_learning_rate
        names = ("momentum", "nesterov", "weight_decay", "no_decay", "betas")
        names = (*names, "eps", "alpha", "centered", "clip_norm")
        kind = "multistep" if self.decay == "milestones" else self.decay
        return OptimizerConfig(
            kind=self.optimizer,
            schedule=Schedule(
                kind=kind,
                learning_rate=self.learning_rate,
                warmup_factor=self.warmup_factor,
                **schedule,
            ),
            **{name: getattr(self, name) for name in names},
        )

    @property
    def sha256(self) -> str:
        """Digest of the JSON, which names the run."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def differences(self, other: TrainingRecipe) -> list[str]:
        """Says in which fields another recipe differs, as ``batch is 8, was 16``."""
        mine, theirs = json.loads(self.to_json()), json.loads(other.to_json())
        return [
            f"{name} is {mine[name]!r}, was {theirs[name]!r}"
            for name in mine
            if mine[name] != theirs[name]
        ]


def _pairs(settings: Any) -> tuple[tuple[str, Any], ...] | None:
    """Returns settings by name as they are kept; ``None`` if they are none."""
    try:
        pairs = sorted(dict(settings).items())
    except (TypeError, ValueError):
        return None
    named = all(isinstance(name, str) for name, _ in pairs)
    return as_plain(pairs) if named else None
