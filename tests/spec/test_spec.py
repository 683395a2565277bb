from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import pytest
import timm
import torchvision
from hypothesis import given

import resnet_spec
from resnet_spec import ResNetConfig, get_config
from tests.support.networks import TINY, TORCHVISION_NAMES, configs
from tests.support.pages import ROOT


def test_every_network_of_the_references_is_listed():
    cifar = [f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)]
    assert resnet_spec.list_models()[:29] == [
        *TORCHVISION_NAMES,
        *("resnet50_v1", "resnet101_v1", "resnet152_v1"),
        *("plain18", "plain34"),
        *cifar,
        *(f"cifar_plain{depth}" for depth in (20, 32, 44, 56)),
        *("resnet18_1d", "resnet18_conv_head", "resnet50_conv_head", "resnet50d"),
    ]


def test_every_resnet_of_timm_is_listed_but_pruned_and_test_networks():
    others = ["*pruned", "test*"]
    theirs = set(timm.list_models(module="resnet", exclude_filters=others))
    theirs |= set(timm.list_models(module="resnest"))
    names = resnet_spec.list_models()
    assert len(theirs) == 86 or timm.__version__ != "1.0.31"
    assert theirs <= set(names)
    assert set(names[29:]) <= theirs
    assert len(names) == 104


def test_pages_say_how_many_networks_there_are():
    many = len(resnet_spec.list_models())
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"The ResNet family, {many} networks" in readme
    assert f"They are {many}." in (ROOT / "docs" / "networks.md").read_text("utf-8")


def test_v1_differs_from_v15_in_the_stride_alone():
    for depth in ("50", "101", "152"):
        v1, v15 = get_config(f"resnet{depth}_v1"), get_config(f"resnet{depth}")
        assert v1 == v15.replace(stride_on="1x1")


def test_an_unknown_name_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match=r"no network named 'resnet51'.*resnet50,"):
        get_config("resnet51")


@given(configs())
def test_a_configuration_survives_json_and_is_a_key(config: ResNetConfig):
    again = ResNetConfig.from_json(config.to_json())
    assert again == config
    assert {config: 1}[again] == 1


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.groups = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("block", "wide", "one of 'basic', 'bottleneck'"),
        ("layers", (), "one positive integer per stage"),
        ("layers", (2, 0), "one positive integer per stage"),
        ("layers", 3, "a tuple"),
        ("widths", (8,), "2 entries"),
        ("groups", 0, "a positive integer"),
        ("groups", True, "a positive integer"),
        ("groups", 2, "1 in a basic block"),
        ("width_per_group", 32, "64 in a basic block"),
        ("stride_on", "1x1", "'3x3' in a basic block"),
        ("stride_on", "5x5", "one of '1x1', '3x3'"),
        ("replace_stride_with_dilation", (False, True), "1 booleans"),
        ("replace_stride_with_dilation", (1,), "1 booleans"),
        ("in_channels", 2.0, "a positive integer"),
        ("num_classes", -1, "a positive integer"),
        ("include_top", 1, "True or False"),
        ("stem", "5x5", "one of '7x7', '3x3', 'deep', 'tiered'"),
        ("shortcut", "E", "one of 'A', 'B', 'B3', 'C', 'D', 'none'"),
        ("stem_channels", 0, "a positive integer"),
        ("stem_pool", "average", "one of 'max', 'conv'"),
        ("attention", "cbam", "one of 'none', 'se', 'eca'"),
        ("attention", None, "one of 'none', 'se', 'eca'"),
        ("attention_ratio", 0.25, "0.0625 with attention 'none'"),
        ("attention_ratio", 0, "above 0, 1 at most"),
        ("attention_ratio", "1/4", "a number"),
        ("reduce_first", 0, "a positive integer"),
        ("reduce_first", 9, "small enough to leave a channel"),
        ("norm", "layer", "one of 'batch', 'group'"),
        ("norm_groups", 4, "32 with norm 'batch'"),
        ("drop_path_rate", 1.0, "from 0, below 1"),
        ("drop_path_rate", -0.1, "from 0, below 1"),
        ("drop_block_rate", float("nan"), "from 0, below 1"),
        ("head", "mlp", "one of 'linear', 'signal', 'conv'"),
        ("dimensions", 3, "one of 1, 2"),
        ("dimensions", True, "one of 1, 2"),
        ("dimensions", 1.0, "one of 1, 2"),
        ("conv_bias", 1, "True or False"),
        ("stem_padding", "SAME", "one of 'torch', 'same'"),
        ("block_padding", 1, "one of 'torch', 'same'"),
        ("pool_padding", "valid", "one of 'torch', 'same'"),
        ("anti_alias", "avg", "one of 'none', 'average', 'blur'"),
        ("signal_width", 100, "None without a signal head"),
        ("norm_eps", 0.0, "a number above 0"),
        ("norm_eps", float("nan"), "a number above 0"),
        ("norm_eps", "1e-5", "a number"),
        ("norm_momentum", 1.5, "from 0 to 1"),
    ],
)
def test_a_bad_value_is_refused_naming_field_value_and_what_is_allowed(
    field: str, value: object, allowed: str
):
    with pytest.raises(ValueError, match=re.escape(f"{field} is {value!r}")) as error:
        TINY.replace(**{field: value})
    assert allowed in str(error.value)


def test_a_bottleneck_without_a_channel_is_refused():
    with pytest.raises(ValueError, match="large enough to give the stage of width 8"):
        TINY.replace(block="bottleneck", width_per_group=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "signal"}, "dimensions is 2; it must be 1 with head 'signal'"),
        ({"head": "conv", "dimensions": 1}, "must be 2 with head 'conv'"),
        ({"head": "signal", "dimensions": 1}, "signal_width is None"),
        (
            {"head": "signal", "dimensions": 1, "signal_width": 9},
            "wide enough for a pool of width 4",
        ),
        ({"stem": "deep", "widths": (7, 8)}, "even at first"),
        ({"shortcut": "A", "widths": (16, 8)}, "where widths become smaller"),
        ({"shortcut": "A", "stem_channels": 32}, "where widths become smaller"),
        ({"stem": "tiered", "stem_channels": 6}, "8 at least: a tiered stem has half"),
        ({"stem": "3x3", "stem_pool": "conv"}, "it must be 'max' with stem '3x3'"),
        ({"norm": "group", "norm_groups": 16}, "a divisor of 8"),
        (
            {
                "block": "bottleneck",
                "groups": 8,
                "width_per_group": 8,
                "reduce_first": 2,
            },
            "such that 8 groups divide 4",
        ),
        ({"attention": "eca", "attention_ratio": 0.25}, "0.0625 with attention 'eca'"),
        ({"output_stride": 3}, "output_stride is 3; it must be 4 or 8"),
        ({"output_stride": True}, "output_stride is True; it must be 4 or 8"),
        (
            {"stem": "3x3", "stem_padding": "same"},
            "stem_padding is 'same'; it must be 'torch' with stem '3x3'",
        ),
        (
            {"stem": "3x3", "pool_padding": "same"},
            "pool_padding is 'same'; it must be 'torch' with stem '3x3'",
        ),
        *(
            (
                {"anti_alias": "blur", field: value, **others},
                f"anti_alias is 'blur'; it must be 'none' with {field} {said}",
            )
            for field, value, said, others in (
                ("stem", "3x3", "'3x3'", {}),
                ("head", "conv", "'conv'", {}),
                ("dimensions", 1, "1", {}),
                ("stride_on", "1x1", "'1x1'", {"block": "bottleneck"}),
                ("stem_padding", "same", "'same'", {}),
                ("block_padding", "same", "'same'", {}),
                ("pool_padding", "same", "'same'", {}),
            )
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        TINY.replace(**settings)


def test_the_sizes_that_fit_a_head_are_said():
    signal = get_config("resnet18_1d")
    assert signal.fitting_inputs() == "signals of height 1 and width 985 to 1016 fit"
    assert signal.signal_positions == 31
    frames = "frames whose map has 48 positions fit, as 384x512, 512x384, 256x768"
    conv_head = get_config("resnet50_conv_head")
    assert conv_head.fitting_inputs() == f"{frames} (height by width)"
    for size in ((384, 512), (512, 384), (256, 768), (321, 449)):
        conv_head.check_size(*size)
    for config, size in (
        (conv_head, (320, 512)),
        (conv_head, (385, 512)),
        (signal, (1, 984)),
        (signal, (1, 1017)),
        (signal, (2, 1000)),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            config.check_size(*size)
        config.replace(include_top=False).check_size(*size)
    for width in (985, 1016):
        signal.check_size(1, width)
    get_config("resnet50").check_size(7, 9)
    assert get_config("resnet50").fitting_inputs() == "images of any size fit"


def test_the_sizes_that_an_anti_aliased_network_takes_are_said():
    average = get_config("resnet50").replace(anti_alias="average")
    said = "images whose sides are multiples of 32, one pixel less, or up to two more"
    assert average.fitting_inputs() == f"{said} fit"
    blur = average.replace(anti_alias="blur")
    assert blur.fitting_inputs() == "images of more than 16 pixels a side fit"
    for config in (average, blur):
        for size in (config.natural_size, config.uneven_size, (31, 34), (97, 128)):
            config.check_size(*size)
        assert config.natural_size == (224, 224)
        assert config.map_size(224, 95) == (7, 3)
    for config, size in ((average, (94, 96)), (average, (96, 99)), (blur, (16, 99))):
        with pytest.raises(ValueError, match="does not fit: images"):
            config.check_size(*size)
    deep = TINY.replace(layers=(1,) * 8, widths=(8,) * 8)
    for kind in ("average", "blur"):
        config = deep.replace(anti_alias=kind)
        config.check_size(*config.natural_size)
        config.check_size(*config.uneven_size)


def test_a_configuration_written_before_a_setting_was_there_has_its_default():
    fields = json.loads(TINY.to_json())
    for name in (
        *("stem_padding", "block_padding", "pool_padding", "anti_alias"),
        *("stem_channels", "stem_pool", "attention", "attention_ratio"),
        *("reduce_first", "norm", "norm_groups"),
        *("drop_path_rate", "drop_block_rate"),
    ):
        del fields[name]
    assert ResNetConfig.from_json(json.dumps(fields)) == TINY


def test_what_a_map_is_halved_by_is_a_matter_of_the_function():
    config = get_config("resnet18")
    for settings in ({"block_padding": "same"}, {"stem_pool": "conv"}):
        other = config.replace(**settings, zero_init_residual=True)
        (item,) = settings.items()
        assert other.as_function() == config.replace(**settings)
        assert resnet_spec.find_name(other.as_function()) is None
        said = resnet_spec.describe(other.as_function())
        assert said == "resnet18 with {}={}".format(*item)


def test_an_unknown_setting_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"unknown setting 'classes'.*num_classes"):
        resnet_spec.resolve("resnet18", classes=3)


def test_text_that_is_no_configuration_is_refused():
    for text in ("", "[]", '{"blocks": 3}', "{}"):
        with pytest.raises(ValueError):  # noqa: PT011  json's own message will do
            ResNetConfig.from_json(text)


def test_torchvisions_none_means_no_dilation():
    config = get_config("resnet50").replace(replace_stride_with_dilation=None)
    assert config == get_config("resnet50")


def test_the_number_of_stages_can_be_overridden():
    config = get_config("resnet50").replace(layers=(1, 1), widths=(8, 16))
    assert config.replace_stride_with_dilation == (False,)


def test_published_weights_are_torchvisions():
    for model in TORCHVISION_NAMES:
        theirs: Any = torchvision.models.get_model_weights(model)
        assert resnet_spec.list_weights(model) == [w.name for w in theirs]
        for their in theirs:
            ours = resnet_spec.get_weights(model, their.name)
            assert their.url.endswith(f"/{ours.filename}")
            assert their.meta["_metrics"]["ImageNet-1K"]["acc@1"] == ours.top1
            preset = their.transforms()
            assert [ours.resize] == preset.resize_size
            assert [ours.crop] == preset.crop_size
        default = resnet_spec.get_weights(model, "DEFAULT")
        assert default.name == theirs.DEFAULT.name


def test_unpublished_weights_are_refused_with_those_that_are_there():
    with pytest.raises(ValueError, match=r"there are: IMAGENET1K_V1$"):
        resnet_spec.get_weights("resnet18", "IMAGENET1K_V2")
    with pytest.raises(ValueError, match="there are: none"):
        resnet_spec.get_weights("resnet50_v1", "DEFAULT")


def test_class_names_are_torchvisions():
    meta = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta
    assert list(resnet_spec.class_names()) == meta["categories"]


def test_a_network_is_described_by_its_name_and_what_differs():
    config = get_config("resnet50_v1").replace(num_classes=10, in_channels=1)
    expected = "resnet50_v1 with in_channels=1, num_classes=10"
    assert resnet_spec.describe(config) == expected
    assert resnet_spec.describe(get_config("resnet18")) == "resnet18"
    config = get_config("cifar_resnet20").replace(shortcut="B")
    assert resnet_spec.describe(config) == "cifar_resnet20 with shortcut=B"
    assert resnet_spec.describe(TINY) == "a network of 1-2 basic blocks"


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("resnet_spec", ["torch", "jax", "flax", "numpy", "resnet_torch", "parity"]),
        ("resnet_torch", ["jax", "flax", "resnet_flax", "parity", "resnet_cli"]),
        ("resnet_flax", ["torch", "resnet_torch", "parity", "resnet_cli"]),
        (
            "parity",
            ["torch", "jax", "flax", "resnet_torch", "resnet_flax", "resnet_cli"],
        ),
        ("resnet_cli.main", ["torch", "jax", "flax", "numpy", "rich", "parity"]),
    ],
)
def test_imports_only_point_down(module: str, forbidden: list[str]):
    code = f"import {module}, sys, json; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert [name for name in forbidden if name in loaded] == []
