"""Moves weights between the twins bit for bit, and proves that both compute the same.

Importing this imports neither torch nor jax: each comes with its first model.
"""

from parity.check import check, compare_modules
from parity.checkpoint import StateDict, load
from parity.convert import Conversion, convert
from parity.download import download
from parity.errors import CheckpointError, DownloadError, OutputError
from parity.gates import FORWARD, GATES, TRAINING
from parity.images import load_image
from parity.report import Report
from parity.samples import random_images, random_state
from parity.selftest import self_test
from parity.state import (
    Loaded,
    adapt_in_channels,
    cast,
    digest_of,
    entries,
    load_state_dict,
    state_dict,
)
from parity.summary import Layer, layers
from parity.trajectory import compare_training
from parity.writing import save

__all__ = [
    "FORWARD",
    "GATES",
    "TRAINING",
    "CheckpointError",
    "Conversion",
    "DownloadError",
    "Layer",
    "Loaded",
    "OutputError",
    "Report",
    "StateDict",
    "adapt_in_channels",
    "cast",
    "check",
    "compare_modules",
    "compare_training",
    "convert",
    "digest_of",
    "download",
    "entries",
    "layers",
    "load",
    "load_image",
    "load_state_dict",
    "random_images",
    "random_state",
    "save",
    "self_test",
    "state_dict",
]
