"""Schedules and optimisers for tests: every kind, and every setting of each."""

from __future__ import annotations

from functools import partial

from resnet_spec import OptimizerConfig, Schedule

CONSTANT = Schedule(learning_rate=0.02)
STAIRS = Schedule(
    learning_rate=0.02, kind="step", step_size=4, gamma=0.3, warmup_steps=5
)
WAVE = Schedule(
    learning_rate=0.02,
    kind="cosine",
    total_steps=18,
    end_learning_rate=0.001,
    warmup_steps=3,
    warmup_factor=0.1,
)
LINE = Schedule(
    learning_rate=0.02,
    kind="linear",
    total_steps=16,
    end_learning_rate=0.002,
    warmup_steps=4,
)
CLIFFS = Schedule(
    learning_rate=0.02, kind="multistep", milestones=(6, 7, 15), warmup_steps=2
)
SCHEDULES = [
    CONSTANT,
    Schedule(learning_rate=0.3, warmup_steps=7),
    STAIRS,
    WAVE,
    LINE,
    CLIFFS,
    Schedule(learning_rate=0.1, kind="step", step_size=30, gamma=0.97),
    Schedule(learning_rate=0.5, kind="cosine", total_steps=83),
    Schedule(learning_rate=0.5, kind="cosine", total_steps=2, warmup_steps=1),
]

sgd = partial(OptimizerConfig, kind="sgd")
adam = partial(OptimizerConfig, kind="adam")
adamw = partial(OptimizerConfig, kind="adamw")
rmsprop = partial(OptimizerConfig, kind="rmsprop")
lamb = partial(OptimizerConfig, kind="lamb")

OPTIMIZERS = [
    sgd(schedule=CONSTANT),
    sgd(schedule=STAIRS, weight_decay=0.1),
    sgd(schedule=CONSTANT, momentum=0.9),
    sgd(schedule=STAIRS, momentum=0.9, weight_decay=0.1),
    sgd(schedule=WAVE, momentum=0.8, weight_decay=0.1, nesterov=True),
    adam(schedule=CONSTANT),
    adam(schedule=WAVE, betas=(0.0, 0.9), eps=1e-6),
    adam(schedule=STAIRS, betas=(0.8, 0.99), weight_decay=0.1),
    adamw(schedule=CONSTANT),
    adamw(schedule=WAVE, weight_decay=0.0),
    adamw(schedule=STAIRS, betas=(0.8, 0.99), weight_decay=0.3),
    rmsprop(schedule=CONSTANT),
    rmsprop(schedule=WAVE, weight_decay=0.1, eps=1e-6),
    rmsprop(schedule=STAIRS, momentum=0.9, alpha=0.9),
    rmsprop(schedule=CONSTANT, centered=True),
    rmsprop(schedule=WAVE, momentum=0.9, weight_decay=0.1, centered=True),
    sgd(schedule=LINE, momentum=0.9, weight_decay=0.1, clip_norm=0.5),
    sgd(schedule=CLIFFS, weight_decay=0.1, no_decay=("bias",)),
    adamw(schedule=LINE, weight_decay=0.3, no_decay=("norm", "bias")),
    lamb(schedule=CONSTANT),
    lamb(schedule=WAVE, betas=(0.8, 0.99), weight_decay=0.3, eps=1e-6),
    lamb(schedule=CLIFFS, weight_decay=0.1, no_decay=("bias",), clip_norm=1.0),
    lamb(schedule=CONSTANT, weight_decay=0.0),
]
