"""Moves weights between the twins bit for bit, and proves that both compute the same.

Importing this imports neither torch nor jax: each comes with its first model.
"""

from parity.errors import (
    CheckpointError,
    DownloadError,
    InputError,
    OutputError,
    TransferWarning,
)
from parity.exporting import Export, ProgramError, export
from parity.exports.facts import Program
from parity.exports.programs import load_exported
from parity.files.convert import Conversion, convert
from parity.files.download import download
from parity.files.models import create_model
from parity.files.preprocessing import preprocess
from parity.files.reading import StateDict, load
from parity.files.writing import save
from parity.images import load_image, random_images
from parity.judging.check import check, compare_modules
from parity.judging.gates import FORWARD, GATES, TRAINING
from parity.judging.programs import check_program
from parity.judging.report import Report
from parity.judging.steps import compare_training
from parity.mutants.selftest import self_test
from parity.quantizing import Loss, Quantized, quantize
from parity.running.layers import Layer, layers
from parity.weights.changes import adapt_in_channels, cast
from parity.weights.dialects import DIALECTS
from parity.weights.samples import random_state
from parity.weights.state import Loaded, digest_of, entries, load_state_dict, state_dict
from resnet_spec import __version__

__all__ = [
    "DIALECTS",
    "FORWARD",
    "GATES",
    "TRAINING",
    "CheckpointError",
    "Conversion",
    "DownloadError",
    "Export",
    "InputError",
    "Layer",
    "Loaded",
    "Loss",
    "OutputError",
    "Program",
    "ProgramError",
    "Quantized",
    "Report",
    "StateDict",
    "TransferWarning",
    "__version__",
    "adapt_in_channels",
    "cast",
    "check",
    "check_program",
    "compare_modules",
    "compare_training",
    "convert",
    "create_model",
    "digest_of",
    "download",
    "entries",
    "export",
    "layers",
    "load",
    "load_exported",
    "load_image",
    "load_state_dict",
    "preprocess",
    "quantize",
    "random_images",
    "random_state",
    "save",
    "self_test",
    "state_dict",
]
