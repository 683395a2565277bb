"""What all tests share: strictness, torchvision as the oracle, one real photograph."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.support.examples import THOROUGH

if not THOROUGH:  # LLVM's optimisations cost a third of the time
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )

import jax
import matplotlib.cbook
import numpy as np
import pytest
import torch
from hypothesis import settings

from benchmarks.torchvision_import import import_torchvision

# A mixed dtype or rank in the Flax twin is a bug, never a convenience.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of the time here goes into compiling the same tiny networks again and again. The
# processes that tests start find it too.
_compiled = tempfile.TemporaryDirectory(prefix="resnet-twins-compiled-")
for option, value in {
    "jax_compilation_cache_dir": _compiled.name,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}.items():
    jax.config.update(option, value)
    os.environ[option.upper()] = str(value)

# Where tests run side by side, torch's threads would only wait for each other's cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

# Deadlines measure compilers here, not code.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


torchvision = import_torchvision()

from tests.support.command import Called  # noqa: E402  after torchvision
from tests.support.networks import TINY, random_torch  # noqa: E402


@pytest.fixture(scope="session")
def photo() -> Path:
    """A real photograph, 512 pixels wide and 600 high."""
    return Path(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))


@pytest.fixture(scope="session")
def tensors() -> dict[str, torch.Tensor]:
    """A tiny network's state, every value random; not to be changed."""
    return dict(random_torch(TINY).state_dict())


@pytest.fixture(scope="session")
def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The same as arrays."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test writes its file."""
    return tmp_path / "weights.pth"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Called:
    """The command, called in this process."""
    return Called(capsys)


@pytest.fixture(scope="session")
def pth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torchvision's: resnet18, random; not to be changed."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(random_torch("resnet18").state_dict())
    torch.save(theirs.state_dict(), path)
    return path


LEFT = (
    "[cifar_resnet1202",
    *(
        f"test_logits_and_statistics_are_torchvisions[{name}"
        for name in ("resnet101", "resnet152", "wide_resnet50_2")
    ),
    *(
        f"test_jax_exports_a_network_for_images_of_any_size_and_number[winograd-{kind}"
        for kind in ("bottleneck", "padded", "plain")
    ),
)
"""Cases of tests, by the beginnings of their names."""

LONGEST = ("test_readme", "test_training_check", "test_twins", "test_blind_spots")
"""Files that are begun first, so that no worker is left alone with one at the end."""


@pytest.hookimpl(tryfirst=True)  # before the markers choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves to ``make test-all`` what has its kind in a smaller case beside it."""
    for item in items:
        if any(case in item.name for case in LEFT):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_runtest_setup() -> None:
    """Draws the same weights for a test whichever run before it."""
    torch.manual_seed(0)
