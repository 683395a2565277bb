"""Training in either framework: data, engines, checkpoints of a run, and the loop.

Importing this imports neither torch nor jax: each comes with its engine.
"""

from resnet_training.beginning import begin, resume
from resnet_training.checkpoint import BEST, LAST, Progress
from resnet_training.data import open_data
from resnet_training.engine import Backend, Counts, Engine
from resnet_training.engines import create_engine
from resnet_training.evaluation import Evaluation, evaluate, open_images
from resnet_training.initial import initial_state
from resnet_training.loader import Batch, Loader
from resnet_training.loop import Options, Outcome, Run, Seen
from resnet_training.plan import Plan
from resnet_training.sources import Data, Source

__all__ = [
    "BEST",
    "LAST",
    "Backend",
    "Batch",
    "Counts",
    "Data",
    "Engine",
    "Evaluation",
    "Loader",
    "Options",
    "Outcome",
    "Plan",
    "Progress",
    "Run",
    "Seen",
    "Source",
    "begin",
    "create_engine",
    "evaluate",
    "initial_state",
    "open_data",
    "open_images",
    "resume",
]
