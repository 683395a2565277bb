"""Every fault that the check must catch, every change that it must pass, in one table.

Each is applied to a copy of a Flax twin. Nothing in ``resnet_flax`` knows of them.
Importing this imports JAX; ``parity`` itself does not import it.
"""

from parity.mutants.equivalents import CONTROLS, EQUIVALENTS
from parity.mutants.maps import MAPS
from parity.mutants.mutant import NETWORKS, Mutant
from parity.mutants.parts import PARTS
from parity.mutants.points import POINTS
from parity.mutants.training import TRAINING
from parity.mutants.weights import WEIGHTS

MUTANTS = (*MAPS, *POINTS, *PARTS, *WEIGHTS, *TRAINING)
"""Every mutant; none may survive."""

__all__ = ["CONTROLS", "EQUIVALENTS", "MUTANTS", "NETWORKS", "Mutant"]
