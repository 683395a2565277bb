"""Parameters and multiply-adds against oracles that were computed elsewhere."""

from __future__ import annotations

from typing import Any

import jax
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

import parity
import resnet_spec
from parity.weights.twins import abstract_flax, abstract_torch
from resnet_spec import ResNetConfig, get_config
from tests.support.networks import configs, few_of_timms

# Parameters and multiply-adds of convolutions and linear layers, computed twice
# elsewhere: by plain arithmetic and from reference code (He et al.'s, torchvision's).
# 3x224x224 and 1000 classes; CIFAR 3x32x32 and 10; the heads at their natural size.
# A figure that nobody has computed elsewhere is None.
ORACLE: dict[str, tuple[int, int | None]] = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet50_v1": (25_557_032, 3_857_973_248),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet101_v1": (44_549_160, 7_570_194_432),
    "resnet152": (60_192_808, 11_513_626_624),
    "resnet152_v1": (60_192_808, 11_282_415_616),
    "resnext50_32x4d": (25_028_904, 4_230_479_872),
    "resnext101_32x8d": (88_791_336, 16_414_015_488),
    "resnext101_64x4d": (83_455_272, 15_460_270_080),
    "wide_resnet50_2": (68_883_240, 11_398_021_120),
    "wide_resnet101_2": (126_886_696, 22_753_050_624),
    "plain18": (11_515_688, 1_794_805_760),
    "plain34": (21_623_848, 3_644_493_824),
    "cifar_resnet20": (269_722, 40_551_040),
    "cifar_resnet32": (464_154, 68_862_592),
    "cifar_resnet44": (658_586, 97_174_144),
    "cifar_resnet56": (853_018, 125_485_696),
    "cifar_resnet110": (1_727_962, 252_887_680),
    "cifar_resnet1202": (19_421_274, 2_829_238_912),
    "cifar_plain20": (269_722, 40_551_040),
    "cifar_plain32": (464_154, 68_862_592),
    "cifar_plain44": (658_586, 97_174_144),
    "cifar_plain56": (853_018, 125_485_696),
    "resnet18_1d": (19_716_648, None),
    "resnet18_conv_head": (12_028_866, None),
    "resnet50_conv_head": (24_556_994, None),
    # timm's, of its own modules and by torch's counter, which counts a blur as well.
    "resnet50d": (25_576_264, 4_328_824_832),
    "resnet10t": (5_435_488, 1_097_259_008),
    "resnet14t": (10_081_632, 1_676_822_528),
    "resnet18d": (11_708_744, 2_053_713_920),
    "resnet26": (15_995_176, 2_342_256_640),
    "resnet26d": (16_014_408, 2_581_897_216),
    "resnet26t": (16_011_872, 2_550_286_336),
    "resnet34d": (21_816_904, 3_903_401_984),
    "resnet50c": (25_576_264, 4_328_824_832),
    "resnet50s": (25_680_808, 5_444_337_664),
    "resnet50t": (25_573_728, 4_297_213_952),
    "resnet50_gn": (25_557_032, 4_089_184_256),
    "resnet101c": (44_568_392, 8_041_046_016),
    "resnet101d": (44_568_392, 8_041_046_016),
    "resnet101s": (44_672_936, 9_156_558_848),
    "resnet152c": (60_212_040, 11_753_267_200),
    "resnet152d": (60_212_040, 11_753_267_200),
    "resnet152s": (60_316_584, 12_868_780_032),
    "resnet200": (64_673_832, 15_007_481_856),
    "resnet200d": (64_693_064, 15_247_122_432),
    "resnext50d_32x4d": (25_048_136, 4_470_120_448),
    "resnext101_32x4d": (44_177_704, 7_969_996_800),
    "resnext101_32x16d": (194_026_792, 36_163_289_088),
    "resnext101_32x32d": (468_530_472, 87_106_781_184),
    "resnetblur18": (11_689_512, None),
    "resnetblur50": (25_557_032, None),
    "resnetblur50d": (25_576_264, None),
    "resnetblur101d": (44_568_392, None),
    "resnetaa34d": (21_816_904, 4_423_626_752),
    "resnetaa50": (25_557_032, 5_129_633_792),
    "resnetaa50d": (25_576_264, 5_369_274_368),
    "resnetaa101d": (44_568_392, 9_081_495_552),
    "ecaresnet26t": (16_011_916, 2_550_332_928),
    "ecaresnet50d": (25_576_350, 4_328_912_640),
    "ecaresnet50t": (25_573_814, 4_297_301_760),
    "ecaresnetlight": (30_162_046, 4_089_287_424),
    "ecaresnet101d": (44_568_563, 8_041_220_864),
    "ecaresnet200d": (64_693_400, 15_247_415_040),
    "ecaresnet269d": (102_093_077, 20_269_980_416),
    "ecaresnext26t_32x4d": (15_406_220, 2_678_783_488),
    "ecaresnext50t_32x4d": (25_045_686, 4_438_597_376),
    "seresnet18": (11_779_624, 1_814_161_408),
    "seresnet34": (21_960_416, 3_663_920_128),
    "seresnet50": (28_088_024, 4_091_699_200),
    "seresnet50t": (28_104_720, 4_299_728_896),
    "seresnet101": (49_326_872, 7_806_148_608),
    "seresnet152": (66_821_848, 11_520_204_800),
    "seresnet152d": (66_841_080, 11_759_845_376),
    "seresnet200d": (71_855_096, 15_254_224_896),
    "seresnet269d": (113_672_760, 20_281_032_704),
    "seresnetaa50d": (28_107_256, 5_371_789_312),
    "seresnext26d_32x4d": (16_809_512, 2_711_740_416),
    "seresnext26t_32x4d": (16_806_976, 2_680_129_536),
    "seresnext50_32x4d": (27_559_896, 4_232_994_816),
    "seresnext101_32x4d": (48_955_416, 7_974_739_968),
    "seresnext101_32x8d": (93_569_048, 16_418_758_656),
    "seresnext101_64x4d": (88_232_984, 15_465_013_248),
    "seresnext101d_32x8d": (93_588_280, 16_658_399_232),
    "seresnextaa101d_32x8d": (93_588_280, 17_178_624_000),
    "seresnextaa201d_32x8d": (149_394_904, 34_276_270_080),
    "senet154": (115_088_984, 20_688_363_520),
    "resnetrs50": (35_691_912, 4_454_490_112),
    "resnetrs101": (63_618_696, 8_175_624_192),
    "resnetrs152": (86_621_576, 11_895_185_408),
    "resnetrs200": (93_209_992, 15_391_137_792),
    "resnetrs270": (129_861_448, 20_643_618_816),
    "resnetrs350": (163_956_168, 26_332_012_544),
    "resnetrs420": (191_891_656, 31_363_342_336),
    "resnest14d": (10_611_688, 2_749_405_184),
    "resnest26d": (17_069_448, 3_623_391_232),
    "resnest50d": (27_483_240, 5_371_160_576),
    "resnest101e": (48_275_016, 10_200_565_760),
    "resnest200e": (70_201_544, 17_408_411_648),
    "resnest269e": (110_929_480, 22_434_121_728),
    "resnest50d_4s2x40d": (30_417_592, 4_369_060_736),
    "resnest50d_1s4x24d": (25_677_000, 4_399_827_456),
}

OVERRIDDEN: list[tuple[str, dict[str, Any], tuple[int, int | None]]] = [
    ("resnet18", {"shortcut": "A"}, (11_515_688, 1_794_805_760)),
    ("resnet18", {"shortcut": "C"}, (12_043_816, 1_878_298_624)),
    ("resnet34", {"shortcut": "A"}, (21_623_848, 3_644_493_824)),
    ("resnet34", {"shortcut": "C"}, (22_716_840, 3_830_747_136)),
    ("resnet50", {"shortcut": "A"}, (22_780_456, 3_729_522_688)),
    ("resnet50", {"shortcut": "C"}, (40_128_552, 6_555_435_008)),
    ("resnet101", {"shortcut": "A"}, (41_772_584, 7_441_743_872)),
    ("resnet101", {"shortcut": "C"}, (76_981_288, 13_761_511_424)),
    ("resnet152", {"shortcut": "A"}, (57_416_232, 11_153_965_056)),
    ("resnet152", {"shortcut": "C"}, (107_335_720, 20_967_587_840)),
    ("cifar_resnet20", {"shortcut": "B"}, (272_474, 40_813_184)),
    ("cifar_resnet56", {"shortcut": "B"}, (855_770, 125_747_840)),
    ("cifar_resnet110", {"shortcut": "B"}, (1_730_714, 253_149_824)),
    ("resnet18", {"conv_bias": True}, (11_694_312, None)),
    ("resnet34", {"conv_bias": True}, (21_806_184, None)),
    ("resnet50", {"conv_bias": True}, (25_583_592, None)),
    ("resnet101", {"conv_bias": True}, (44_601_832, None)),
    ("resnet152", {"conv_bias": True}, (60_268_520, None)),
]


def test_the_oracle_has_every_name():
    assert set(ORACLE) == set(resnet_spec.list_models())


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        *(
            pytest.param(name.values[0], {}, ORACLE[name.values[0]], marks=name.marks)
            for name in few_of_timms(ORACLE)
        ),
        *OVERRIDDEN,
    ],
)
def test_both_twins_have_the_oracles_parameters_and_multiply_adds(
    name: str, settings: dict[str, Any], expected: tuple[int, int | None]
):
    config = get_config(name).replace(**settings)
    for create in (abstract_torch, abstract_flax):
        found = parity.layers(
            create(config), (config.in_channels, *config.natural_size)
        )
        assert sum(layer.parameters for layer in found) == expected[0]
        if expected[1] is not None:
            assert sum(layer.multiply_adds for layer in found) == expected[1]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [*((name, {}, counts[0]) for name, counts in ORACLE.items())]
    + [(name, settings, counts[0]) for name, settings, counts in OVERRIDDEN],
)
def test_a_configuration_knows_its_networks_parameters(
    name: str, settings: dict[str, Any], expected: int
):
    assert get_config(name).replace(**settings).weight_count == expected


@given(config=configs())
@settings(max_examples=60, deadline=None)
def test_a_configuration_knows_the_parameters_of_both_its_twins(config: ResNetConfig):
    torchs = sum(p.numel() for p in abstract_torch(config).parameters())
    flaxs = jax.tree.leaves(nnx.state(abstract_flax(config), nnx.Param))
    assert config.weight_count == torchs == sum(leaf.size for leaf in flaxs)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"stem_channels": 2**15, "stem_pool": "conv"}, "9,7"),
        ({"stem_channels": 2**15, "stem": "deep"}, "7,2"),
        ({"widths": (2**14,) * 4, "layers": (1,) * 4, "attention": "se"}, "20,2"),
    ],
)
def test_what_no_memory_holds_is_refused_wherever_it_lies(
    settings: dict[str, Any], weights: str
):
    with pytest.raises(ValueError, match=f"has {weights}[0-9,]* weights; make it"):
        get_config("resnet18").replace(**settings)


def test_torchs_own_counter_agrees():
    model = abstract_torch(get_config("resnext50_32x4d"))
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 97, 64, device="meta"))
    found = parity.layers(model, (3, 97, 64))
    total = sum(layer.multiply_adds for layer in found)
    assert counter.get_total_flops() == 2 * total


# He et al. 2015, figure 3 and Table 1, in torchvision's names: in, out, stride,
# padding, kernel, projection of the first block.
RESNET34 = [
    ("layer1.0", (64, 56, 56), (64, 56, 56), 1, (64, 64, 3, 3), False),
    ("layer2.0", (64, 56, 56), (128, 28, 28), 2, (128, 64, 3, 3), True),
    ("layer2.1", (128, 28, 28), (128, 28, 28), 1, (128, 128, 3, 3), False),
    ("layer3.0", (128, 28, 28), (256, 14, 14), 2, (256, 128, 3, 3), True),
    ("layer3.5", (256, 14, 14), (256, 14, 14), 1, (256, 256, 3, 3), False),
    ("layer4.0", (256, 14, 14), (512, 7, 7), 2, (512, 256, 3, 3), True),
    ("layer4.2", (512, 7, 7), (512, 7, 7), 1, (512, 512, 3, 3), False),
]


TWINS = pytest.mark.parametrize("create", [abstract_torch, abstract_flax])


@TWINS
def test_resnet34_has_the_papers_shapes(create: Any):
    found = {
        layer.name: layer
        for layer in parity.layers(create(get_config("resnet34")), (3, 224, 224))
    }
    for block, into, out, stride, kernel, projection in RESNET34:
        conv = found[f"{block}.conv1"]
        assert (conv.input, conv.output, conv.kernel) == (into, out, kernel)
        assert (conv.stride, conv.padding) == (stride, 1)
        assert (f"{block}.downsample.0" in found) == projection
        if projection:
            shortcut = found[f"{block}.downsample.0"]
            assert (shortcut.input, shortcut.output) == (into, out)
            assert shortcut.kernel == (out[0], into[0], 1, 1)
            assert shortcut.projection
            assert not conv.projection


RESNET50 = {
    "layer1.0.conv1": ((64, 56, 56), (64, 56, 56)),
    "layer1.0.conv3": ((64, 56, 56), (256, 56, 56)),
    "layer1.0.downsample.0": ((64, 56, 56), (256, 56, 56)),
    "layer2.0.conv1": ((256, 56, 56), (128, 56, 56)),
    "layer2.0.conv2": ((128, 56, 56), (128, 28, 28)),
    "layer2.0.conv3": ((128, 28, 28), (512, 28, 28)),
    "layer3.0.conv1": ((512, 28, 28), (256, 28, 28)),
    "layer3.0.conv2": ((256, 28, 28), (256, 14, 14)),
    "layer3.0.conv3": ((256, 14, 14), (1024, 14, 14)),
    "layer4.0.conv1": ((1024, 14, 14), (512, 14, 14)),
    "layer4.0.conv2": ((512, 14, 14), (512, 7, 7)),
    "layer4.0.conv3": ((512, 7, 7), (2048, 7, 7)),
    "layer4.2.conv3": ((512, 7, 7), (2048, 7, 7)),
}


@TWINS
def test_resnet50_has_the_shapes_of_v15(create: Any):
    found = {
        layer.name: (layer.input, layer.output)
        for layer in parity.layers(create(get_config("resnet50")), (3, 224, 224))
    }
    assert {name: found[name] for name in RESNET50} == RESNET50


@TWINS
def test_the_one_dimensional_network_has_the_references_layers(create: Any):
    config = get_config("resnet18_1d")
    found = {layer.name: layer for layer in parity.layers(create(config), (1, 1, 1000))}
    conv = found["layer2.0.conv1"]
    assert conv.kernel == (128, 64, 1, 3)
    assert (conv.stride, conv.padding) == (2, 1)
    assert (conv.input, conv.output) == ((64, 1, 1000), (128, 1, 500))
    assert (found["avgpool"].input, found["avgpool"].output) == (
        (512, 1, 125),
        (512, 1, 31),
    )
    assert found["fc"].kernel == (1000, 15872)
