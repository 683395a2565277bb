"""What all tests share: strictness, torchvision as the oracle, one real photograph."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

from tests.support.examples import AS_USERS

# Where tests run side by side, threads would only wait for each other's cores: torch's,
# and in the processes that tests start (here a plugin loads numpy first) its BLAS's.
if "PYTEST_XDIST_WORKER" in os.environ:
    for library in ("OMP", "OPENBLAS"):
        os.environ[f"{library}_NUM_THREADS"] = "1"

# Of programs that run once for a moment, optimising takes most of the time: without it,
# and without MLIR between XLA and LLVM, compiling takes a seventh. `make test-all` runs
# what compares programs once more, compiled as users compile.
if not AS_USERS:
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        " --xla_cpu_use_fusion_emitters=false"
    )

import jax
import matplotlib.cbook
import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

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


@pytest.fixture(scope="session")
def folder_of_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files, two classes of colours; not to be changed."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 5)):
        for label, name in enumerate(("night sky", "wüste")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 80, (20, 24, 3)) + 150 * label
                image = Image.fromarray(noise.astype(np.uint8))
                image.save(root / part / name / f"{i}.jpg")
    return root


LEFT = (
    "[cifar_resnet1202",
    "test_annotations_of_shapes_hold_in_both_twins",
    "test_large_maps_raise_no_alarm",
    *(
        f"test_logits_and_statistics_are_torchvisions[{name}"
        for name in ("resnet101", "resnet152", "wide_resnet50_2")
    ),
    *(
        f"test_every_named_network_is_equal_in_float64[{name}"
        for name in ("resnet34", "resnet101", "resnet152", "wide", "resnext", "cifar_")
    ),
    *(
        f"test_every_named_network_survives_both_ways[{name}"
        for name in ("resnet101", "resnet152", "resnext101", "wide")
    ),
    "test_timms_network_has_the_same_keys_and_numbers[resnet50",
    *(
        f"test_jax_exports_a_network_for_images_of_any_size_and_number[{case}"
        for case in (
            *("as it is-bottleneck", "as it is-in groups", "as it is-padded"),
            *("as it is-plain", "as it is-squeezed", "fused", "winograd-bottleneck"),
            *("winograd-in groups", "winograd-padded", "winograd-plain"),
            *("winograd-same", "winograd-squeezed"),
        )
    ),
    "test_gradients_of_each_image_are_those_of_the_image_alone_in_both_twins[b",
    *(
        f"test_a_run_goes_on_where_it_was_stopped[{ways}-{rule}"
        for ways in ("torch-torch", "flax-flax", "torch-flax", "flax-torch")
        for rule in ("lamb", "rmsprop")
    ),
    *(
        f"test_a_hand_over_in_float32_moves_a_run_no_more_than_roundoffs_do[{rule}"
        for rule in ("adamw", "lamb", "rmsprop")
    ),
    *(
        f"test_the_parts_of_a_recipe_are_one_trajectory_in_float64[{rule}"
        for rule in ("lamb", "rmsprop")
    ),
    "test_a_run_that_was_stopped_has_the_files_of_one_that_was_not[stops1-flax",
    "test_a_network_that_rounds_on_the_way_does_not_pass[torch",
    "test_twenty_steps_end_at_the_same_place[adamw",
    "test_gradients_that_are_not_zeroed_are_seen_after_the_second_step[_not_zeroed_in_t",
    "test_on_a_cpu_both_precisions_are_float32[strict",
    "test_attention_with_split_kernels_passes_although_a_keys_bias_does_nothing",
    "test_a_function_is_judged_by_what_it_shows",
    "test_in_float64_the_engine_finds_it_equal[sixteen",
    "test_the_check_passes_the_twins_and_names_the_layer_that_pads_otherwise[same",
    "test_every_size_that_is_not_refused_is_computed_alike[blur",
    "test_a_flipped_bit_anywhere_is_refused_or_changes_nothing[16",
    "test_a_flipped_bit_anywhere_is_refused_or_changes_nothing[128",
    *("test_jaxnn[", "test_flaxmodels[", "test_mlx_image["),
    "test_what_jaxnn_calls_anti_aliased",
    "test_many_names_are_refused_at_once",
    "test_a_run_in_both_frameworks_is_torchvisions_in_a_plain_loop[sgd",
    "test_weights_are_evaluated_on_images_as_they_want_them[hugging",
    *(
        f"test_a_fresh_interpreter_with_one_framework_runs_a_program[{container}"
        for container in ("stablehlo", "torch-export")
    ),
    *(
        f"test_a_program_runs_without_this_project[{container}"
        for container in ("stablehlo", "torch-export")
    ),
    *(
        f"test_a_faulty_program_fails_and_is_not_written[{fault}"
        for fault in ("eps", "mean")
    ),
    *(
        f"test_both_twins_have_the_oracles_parameters_and_multiply_adds[{name}"
        for name in ("resnet101", "resnet152", "wide", "resnext101", "resnetrs")
    ),
    *(
        f"test_training_is_equal_in_float64[{option}]"
        for option in ("average", "blur", "same")
    ),
    "test_gradients_of_the_flax_twin_are_timms[ecaresnet50t",
    "test_the_flax_twin_is_timms_network[resnetrs50",
    "test_jax_exports_a_network_for_images_of_any_size_and_number[winograd-blur",
    "test_a_run_goes_on_where_it_was_stopped[flax-flax-adamw",
    "test_a_forgotten_state_of_the_optimiser_shows[flax-lamb",
    "test_a_forgotten_state_of_the_optimiser_shows[flax-rmsprop",
    "test_every_public_name_has_its_place",
    "test_no_page_asks_another_machine",
    "test_no_page_scrolls_sideways_on_a_phone",
    "test_a_flipped_bit_anywhere_is_refused_or_changes_nothing[255",
    "test_half_types_halve_the_file_and_stay_below_their_ceiling[float16-torch",
    "test_every_named_network_is_equal_in_float64[resnet50_conv_head",
)
"""Cases of tests, by a part of their names."""

RARE = (
    # Networks whose parts, and depth, others beside them have.
    *(
        f"test_every_named_network_is_equal_in_float64[{name}"
        for name in (
            *("resnet34", "resnet152", "wide", "resnet101_v1", "resnet152_v1"),
            *("cifar_resnet32", "cifar_resnet44", "cifar_resnet56", "cifar_resnet1202"),
            *("cifar_plain20", "cifar_plain32", "cifar_plain44", "resnetblur18"),
        )
    ),
    *(
        f"test_networks_at_full_size_are_the_same_in_both_runtimes[{name}"
        for name in (
            *("resnet34", "resnet101", "resnet152", "wide", "plain", "cifar_plain"),
            *("cifar_resnet32", "cifar_resnet44", "cifar_resnet56", "cifar_resnet1"),
            *("resnet50_v1", "resnet18_conv_head", "ecaresnet26t", "resnetrs50"),
        )
    ),
    *(
        f"test_the_torch_twin_is_timms_network[{name}"
        for name in (
            *("resnet101", "resnet152", "resnet200", "resnet26", "wide_resnet101"),
            *("resnext101", "resnetblur101", "resnetaa101", "ecaresnet101"),
            *("ecaresnet2", "ecaresnext", "seresnet101", "seresnet152", "seresnet2"),
            *("seresnext101", "resnetrs1", "resnetrs2", "resnetrs3", "resnetrs4"),
            "resnest2",
        )
    ),
    *(
        f"test_the_flax_twin_is_timms_network[{name}"
        for name in (
            *("resnext101", "ecaresnext", "seresnet152", "seresnext101", "seresnextaa"),
            *("seresnext26", "seresnext50", "resnetblur5", "resnetaa50]"),
            *("seresnet18", "seresnet50", "resnet18d", "resnet50c", "resnext50d"),
            *("resnest101e", "resnest50d_1"),
        )
    ),
    *(
        f"test_both_twins_have_timms_keys_and_keys_tell_which_network_it_is[{name}"
        for name in ("resnext", "resnetaa", "resnetblur", "seresnext", "seresnet1")
    ),
    *(
        f"test_gradients_of_the_flax_twin_are_timms[{name}"
        for name in (
            *("seresnext50", "senet154", "seresnextaa", "seresnet18", "resnest50d_1"),
            *("resnest14d", "resnetblur50d", "resnetrs50", "resnet50_gn"),
        )
    ),
    *(
        f"test_with_an_output_stride_it_is_timms_too[{name}"
        for name in ("seresnextaa201d", "senet154", "seresnext50", "resnetrs50")
    ),
    *(
        f"test_every_named_network_survives_both_ways[{name}"
        for name in ("resnet152", "resnext101", "wide", "resnet101_v1", "resnet152_v1")
    ),
    # Forms and containers of which each is tried, but not each with each.
    *(
        f"test_jax_exports_a_network_for_images_of_any_size_and_number[{case}"
        for case in (
            *("fused-bottleneck", "fused-padded", "fused-plain", "fused-same"),
            *("fused-squeezed", "fused-in groups", "winograd-bottleneck"),
            *("winograd-padded", "winograd-plain", "winograd-same", "winograd-in"),
        )
    ),
    *(
        f"test_a_program_computes_what_torch_does_for_any_number_and_size[{case}"
        for case in ("padded", "same-torch", "conv", "squeezed-torch", "without a top")
    ),
    # Another case of each is tried.
    *(f"test_jaxnn[{name}" for name in ("resnet50d", "resnet50s")),
    *(
        f"test_torchs_compiler_takes_every_part[{part}"
        for part in ("squeezed", "in groups")
    ),
    *(f"test_a_wrong_optimiser_is_seen[fault{number}" for number in (1, 2)),
    *(
        f"test_the_check_passes_the_twins_and_names_the_layer_that_pads_otherwise[{how}"
        for how in ("blur", "average")
    ),
    *(
        f"test_each_setting_pads_its_own_layers_as_xla_does[bottleneck-places{place}"
        for place in (1, 2, 3)
    ),
    *(
        f"test_in_float64_the_engine_finds_it_equal[sixteen-size{size}"
        for size in (1, 2)
    ),
    *(
        f"test_a_photograph_is_the_same_class_in_a_program_of_full_size[{container}"
        for container in (".stablehlo", ".pt2")
    ),
    "test_compiled_modes_pass_the_gate[training",
    "test_what_jaxnn_calls_anti_aliased_is_no_network_here[resnetaa34d",
    "test_keras_applications_load_the_weights[resnet50.h5",
    "test_it_learns_as_torch_does[resnext",
    "multiply_adds[cifar_resnet1202",
    "test_both_have_the_same_entries_and_the_same_layers[cifar_resnet1202",
    "test_every_named_network_survives_both_ways[cifar_resnet1202",
    "test_timms_network_passes_though_its_activations_have_other_names[resnet50d",
    "test_programs_are_made_and_their_costs_seen[compile, torch",
    "test_a_run_in_both_frameworks_is_torchvisions_in_a_plain_loop[adamw",
    "test_every_size_that_is_not_refused_is_computed_alike[blur",
    "test_gradients_of_each_image_are_those_of_the_image_alone_in_both_twins[bott",
    "test_twenty_steps_end_at_the_same_place[rmsprop",
    "test_gradients_that_are_not_zeroed_are_seen_after_the_second_step[_not_zeroed_in_f",
    # More of the same.
    "test_a_run_that_is_killed_at_any_moment_ends_the_same[20",
    "test_other_threads_and_instructions_confirm_a_certificate[bfloat16",
    "test_every_command_prints_what_is_shown[docs/gates.md-all",
    "test_every_library_that_is_installed_computes_the_same[resnet50-keras-jax",
    "test_of_many_images_the_gate_looks_at_the_first_and_all_are_timed[training",
    "test_two_processes_of_jax_take_the_path_of_torchs_one[1",
    "test_a_signal_to_one_process_stops_all_at_one_step[15",
    "test_programs_are_made_and_their_costs_seen[export, S",
    "test_programs_are_made_and_their_costs_seen[export, t",
)
"""Of these, what is left to ``make test-exhaustive``: no test's only case."""

LONGEST = ("test_readme", "test_training_check", "test_twins", "test_blind_spots")
"""Files that are begun first, so that no worker is left alone with one at the end."""


@pytest.hookimpl(tryfirst=True)  # before the markers choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves to larger runs what has its kind in a smaller case beside it."""
    for item in items:
        if any(case in item.name for case in LEFT):
            item.add_marker(pytest.mark.slow)
        if any(case in item.name for case in RARE):
            item.add_marker(pytest.mark.exhaustive)
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_collection_finish() -> None:
    """Spares the collector all that the libraries made, for each of some thousand."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """Draws the same weights for a test whichever run before it."""
    torch.manual_seed(0)
