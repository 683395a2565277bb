"""Networks found by pattern, and names that are nearly right."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
import resnet_spec
from parity.judging.report import GateResult, Row
from resnet_spec import get_config, list_models, resolve
from tests.support.networks import TINY


def test_networks_are_listed_by_patterns_in_the_tables_order():
    names = list_models()
    assert list_models("*") == names
    assert list_models("resnext*") == [n for n in names if n.startswith("resnext")]
    assert list_models(["resnet152", "resnet18", "*152_*"]) == [
        "resnet18",
        "resnet152",
        "resnet152_v1",
    ]
    found = list_models("resnet*", exclude=["*_*", "*[a-z]", "resnet[a-z]*"])
    assert found == [f"resnet{d}" for d in (18, 34, 50, 101, 152, 26, 200)]
    assert list_models("*v1", exclude=["*50*", "*101*"]) == ["resnet152_v1"]
    assert list_models("RESNET18") == list_models("resnet") == []


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("resnet5O", "'resnet50'?"),
        ("ResNet50", "'resnet50'?"),
        ("resnet_50", "'resnet50'?"),
        ("resnet-101", "'resnet101'?"),
        ("ResNet50-v1", "'resnet50_v1'?"),
        ("wide_resnet50", "'wide_resnet50_2'?"),
        ("resnext50", "'resnext50_32x4d'?"),
        ("resnet110", "'cifar_resnet110'?"),
        ("resnt18", "'resnet18'"),
    ],
)
def test_a_misspelt_network_gets_the_one_that_was_meant(written: str, meant: str):
    with pytest.raises(ValueError) as error:  # noqa: PT011  its text is the matter
        get_config(written)
    assert f"no network named {written!r}; did you mean {meant}" in str(error.value)
    assert str(error.value).endswith(list_models()[-1])


def test_what_is_like_no_network_gets_the_list_alone():
    with pytest.raises(
        ValueError, match=r"^no network named 'vgg'; there are resnet18"
    ):
        get_config("vgg")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("in_chans", "in_channels"),
        ("num_class", "num_classes"),
        ("classes", "num_classes"),
        ("numClasses", "num_classes"),
        ("cardinality", "groups"),
        ("base_width", "width_per_group"),
        ("zero_init_last", "zero_init_residual"),
        ("bn_eps", "norm_eps"),
    ],
)
def test_a_misspelt_setting_gets_the_one_that_was_meant(written: str, meant: str):
    with pytest.raises(ValueError) as error:  # noqa: PT011  its text is the matter
        resolve("resnet18", **{written: 1})
    assert f"unknown setting {written!r}; did you mean {meant!r}? a" in str(error.value)


@pytest.mark.parametrize("written", ["pretrained", "weights"])
def test_who_asks_a_configuration_for_weights_is_sent_to_what_has_them(written: str):
    with pytest.raises(ValueError, match=rf"{written}.*parity\.create_model\(\.\.\.\)"):
        resolve("resnet18", **{written: True})


@pytest.mark.parametrize("what", [None, 50, ["resnet18"], {}])
def test_what_is_neither_a_name_nor_a_configuration_is_refused(what: Any):
    with pytest.raises(ValueError, match=r"it must be a name .* or a ResNetConfig"):
        resolve(what)


@pytest.mark.parametrize(
    "five", [np.int64(5), np.uint8(5), np.array(5), torch.tensor(5), jnp.int32(5)]
)
def test_other_libraries_integers_are_stored_as_pythons(five: Any):
    config = TINY.replace(
        num_classes=five, in_channels=five, layers=(five, 1), widths=[8, five]
    )
    expected = TINY.replace(num_classes=5, in_channels=5, layers=(5, 1), widths=(8, 5))
    assert config == expected
    assert type(config.num_classes) is type(config.layers[0]) is int
    assert json.loads(config.to_json())["num_classes"] == 5


@pytest.mark.parametrize(
    "value", [True, np.True_, np.float32(5), torch.tensor(True), "5", (5,)]
)
def test_what_is_no_integer_is_refused_as_a_count(value: Any):
    with pytest.raises(ValueError, match=r"num_classes is .*a positive integer"):
        TINY.replace(num_classes=value)
    with pytest.raises(ValueError, match=r"num_classes is array.*a plain value"):
        TINY.replace(num_classes=np.array([value]))


@pytest.mark.parametrize(
    "package", ["resnet_spec", "resnet_torch", "resnet_flax", "parity"]
)
def test_packages_know_their_version(package: str):
    assert import_module(package).__version__ == version("resnet-twins")


def test_a_copy_of_the_source_has_a_version_too(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert resnet_spec.__version__ == "0+unknown"
    with pytest.raises(AttributeError, match="no attribute 'versions'"):
        resnet_spec.versions  # noqa: B018


def test_the_version_is_read_only_when_asked_for():
    assert "__version__" not in vars(resnet_spec)


def test_a_report_is_true_if_it_passed_and_gates_are_tuples_of_names():
    for ok in (True, False):
        report = parity.Report((GateResult("G0", "rows", (Row("a", ok),)),), {}, {})
        assert bool(report) is report.ok is ok
    for names in (parity.FORWARD, parity.TRAINING, parity.GATES):
        assert isinstance(names, tuple)
        assert all(isinstance(name, str) for name in names)
    assert set(parity.FORWARD) | set(parity.TRAINING) <= set(parity.GATES)


def test_no_public_name_is_lost():
    kept = {
        "parity": (
            *("FORWARD", "GATES", "TRAINING", "CheckpointError", "Conversion"),
            *("DownloadError", "Layer", "Loaded", "OutputError", "Report", "StateDict"),
            *("adapt_in_channels", "cast", "check", "compare_modules", "convert"),
            *("compare_training", "digest_of", "download", "entries", "layers", "load"),
            *("load_image", "load_state_dict", "random_images", "random_state", "save"),
            *("self_test", "state_dict"),
        ),
        "resnet_torch": ("ResNet", "create_model", "fuse"),
        "resnet_flax": ("ResNet", "create_model", "fuse", "winograd"),
        "resnet_spec": (
            *("OptimizerConfig", "Printed", "PublishedWeights", "ResNetConfig"),
            *("Schedule", "class_names", "closest_name", "describe", "find_name"),
            *("get_config", "get_weights", "list_models", "list_weights", "printed"),
            *("published_sha256", "resolve"),
        ),
    }
    for package, names in kept.items():
        assert set(names) <= set(import_module(package).__all__), package
