"""A recipe for known data: the network, the optimiser, and when what happens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from resnet_spec import OptimizerConfig, ResNetConfig, TrainingRecipe


@dataclass(frozen=True)
class Plan:
    """A recipe for so many images of so many classes.

    Args:
        recipe: what is done.
        images: in an epoch.
        classes: that there are.
        network: if it is not the recipe's.
    """

    recipe: TrainingRecipe
    images: int
    classes: int
    network: ResNetConfig | None = None

    @cached_property
    def config(self) -> ResNetConfig:
        """The network."""
        return self.network or self.recipe.config(self.classes)

    @cached_property
    def steps(self) -> int:
        """Length of the run."""
        return self.recipe.total_steps(self.images)

    @property
    def steps_of_epoch(self) -> float:
        """Steps in which every image is seen once."""
        return self.images / self.recipe.batch

    @cached_property
    def optimizer(self) -> OptimizerConfig:
        """The optimiser."""
        return self.recipe.optimizer_config(self.steps, self.steps_of_epoch)

    def epoch(self, step: int) -> float:
        """Returns how many epochs are over after so many steps."""
        return step / self.steps_of_epoch

    def evaluates(self, step: int) -> bool:
        """Says whether there is an evaluation after so many steps."""
        if step >= self.steps:
            return True
        period = self.recipe.evaluate_every * self.steps_of_epoch
        # Whether a whole number of periods has ended in this step.
        return math.floor(step / period + 1e-9) > math.floor((step - 1) / period + 1e-9)
