"""Whose names a state has: found out, translated, and nothing guessed in silence."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import timm
import torch

import parity
from parity.files.hub_config import of_name, told_settings
from parity.weights.dialects.cifar import channels
from parity.weights.dialects.dialect import Dialect, write
from parity.weights.dialects.recognising import recognise
from parity.weights.digest import differing_bits
from parity.weights.twins import abstract_torch, entries_of
from resnet_spec import ResNetConfig, get_config
from tests.support.corpus import refused

BASIC = ResNetConfig(block="basic", layers=(2, 1, 3), widths=(8, 16, 24), num_classes=7)
CONFIGS = [
    BASIC,
    BASIC.replace(block="bottleneck", widths=(8, 16, 16)),
    BASIC.replace(
        block="bottleneck", layers=(1, 1, 1), include_top=False, num_classes=1000
    ),
    BASIC.replace(block="bottleneck", stem="deep", shortcut="D"),
]


def as_it_is_there(dialect: Dialect, config: ResNetConfig) -> ResNetConfig | None:
    """The same network as this library always has it, if it has it at all."""
    visible: dict[str, Any] = {"conv_bias": True} if dialect.name == "keras" else {}
    fixed = {
        s: values[0]
        for s, values in dialect.allowed.items()
        if s not in ("block", "shortcut", "groups", "include_top", "head")
        and not (s == "stem" and config.stem in values)
        and not (s == "stride_on" and config.block == "basic")
    }
    if "A" in dialect.allowed.get("shortcut", ()):
        visible["shortcut"] = "A"
    try:
        config = config.replace(**{**fixed, **visible})
    except ValueError:
        return None
    return None if dialect.obstacles(config) else config


CASES = [
    pytest.param(dialect, there, id=f"{dialect.name}-{i}")
    for dialect in parity.DIALECTS.values()
    for i, config in enumerate(CONFIGS)
    if (there := as_it_is_there(dialect, config)) is not None
    # Without a head its names are torchvision's under a prefix.
    and (dialect.name != "mmpretrain" or config.include_top)
]


PARTS = [
    BASIC.replace(
        attention="se",
        attention_ratio=0.25,
        stem_pool="conv",
        stem="deep",
        widths=(8, 16, 64),
    ),
    BASIC.replace(block="bottleneck", attention="eca", stem="tiered", shortcut="D"),
    BASIC.replace(widths=(32, 32, 64), norm="group"),
    BASIC.replace(block="bottleneck", shortcut="B3", reduce_first=2, stem_channels=32),
]
"""Networks that only the twins and timm have."""

CASES += [
    pytest.param(dialect, config, id=f"{dialect.name}-parts-{i}")
    for dialect in parity.DIALECTS.values()
    for i, config in enumerate(PARTS)
    if dialect.every
]

GROUPED = PARTS[2].replace(norm_eps=1e-6)
CASES.append(pytest.param(parity.DIALECTS["jaxnn-gn"], GROUPED, id="jaxnn-gn-0"))


@pytest.mark.parametrize("config", PARTS)
def test_other_dialects_say_which_setting_they_have_no_word_for(config: ResNetConfig):
    for dialect in parity.DIALECTS.values():
        if not dialect.every:
            with pytest.raises(
                parity.CheckpointError, match=r"(attention|norm|norm_eps|shortcut) is "
            ):
                in_words_of(dialect, config)


INDEX = "57fb808b247547db"


def state_of(config: ResNetConfig) -> dict[str, np.ndarray]:
    return parity.random_state(entries_of(config), seed=3)


def in_words_of(dialect: Dialect, config: ResNetConfig) -> dict[str, np.ndarray]:
    return write(dialect, config, state_of(config))


def test_every_dialect_has_a_network_here():
    names = {str(case.id).rpartition("-")[0] for case in CASES}
    names = {name.removesuffix("-parts") for name in names}
    assert names == set(parity.DIALECTS)


@pytest.mark.parametrize(("dialect", "config"), CASES)
def test_what_is_written_is_recognised_and_read(dialect: Dialect, config: ResNetConfig):
    there, state = in_words_of(dialect, config), state_of(config)
    found = recognise(there)
    assert found.dialect == dialect.name
    if dialect.name != "torchvision":
        assert found.config == config
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    for name in set(state) - (counters - set(found.arrays)):
        np.testing.assert_array_equal(found.arrays[name], state[name], strict=True)


@pytest.mark.parametrize(("dialect", "config"), CASES)
def test_nothing_is_recognised_by_a_part_of_the_table(
    dialect: Dialect, config: ResNetConfig
):
    there = in_words_of(dialect, config)
    needed = [n for n in there if not n.endswith("num_batches_tracked")]
    for name in (needed[0], needed[len(needed) // 2], needed[-1]):
        part = {n: array for n, array in there.items() if n != name}
        try:
            found = recognise(part)
        except parity.CheckpointError:
            continue
        assert found.config is None
        assert set(found.arrays) <= set(part)  # passed on, untranslated


@pytest.mark.parametrize(("dialect", "config"), CASES[1::3])
def test_what_stands_beside_a_network_is_named_with_the_way_out(
    dialect: Dialect, config: ResNetConfig
):
    there = in_words_of(dialect, config) | {"extra.weight": np.zeros(3, np.float32)}
    if dialect.name == "torchvision":
        assert "extra.weight" in recognise(there).arrays  # a strict check says so
        return
    with pytest.raises(parity.CheckpointError, match=r"extra\.weight\. .*--ignore"):
        recognise(there)


def test_akamasters_channels_are_put_into_order():
    assert channels((16, 32, 64))[1] == [*range(8, 24), *range(8), *range(24, 32)]
    dialect = parity.DIALECTS["akamaster"]
    config = get_config("cifar_resnet20").replace(layers=(1, 2, 1))
    there = in_words_of(dialect, config)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32))
    found = run_of_akamaster(parity.cast(there, "float64"), images)
    twin = abstract_torch(config, param_dtype="float64")
    parity.load_state_dict(twin, parity.cast(state_of(config), "float64"))
    with torch.no_grad():
        expected = twin(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def run_of_akamaster(arrays: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """What that repository's network computes: shortcut A pads on both sides."""
    functional = torch.nn.functional
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def layer(
        x: torch.Tensor, number: tuple[str, str], stride: int = 1
    ) -> torch.Tensor:
        x = functional.conv2d(
            x, state[f"{number[0]}conv{number[1]}.weight"], None, stride, 1
        )
        norm = f"{number[0]}bn{number[1]}"
        return functional.batch_norm(
            x,
            state[f"{norm}.running_mean"],
            state[f"{norm}.running_var"],
            state[f"{norm}.weight"],
            state[f"{norm}.bias"],
        )

    x = layer(torch.from_numpy(images), ("", "1")).relu()
    for stage, blocks in ((1, 1), (2, 2), (3, 1)):
        for block in range(blocks):
            path, stride = f"layer{stage}.{block}.", 2 if stage > 1 and not block else 1
            y = layer(x, (path, "1"), stride).relu()
            y = layer(y, (path, "2"))
            if stride == 2:
                pad = x.shape[1] // 2
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
            x = (x + y).relu()
    pooled = x.mean((2, 3))
    return functional.linear(
        pooled, state["linear.weight"], state["linear.bias"]
    ).numpy()


# --- what does not fit ----------------------------------------------------------------


def test_a_dialect_that_is_none_is_refused():
    with pytest.raises(ValueError, match=re.escape("did you mean 'huggingface'")):
        parity.load("nowhere.pth", dialect="hugingface")


def test_an_unknown_file_names_the_closest_dialects(tmp_path: Path):
    path = tmp_path / "weights.pth"
    state = in_words_of(parity.DIALECTS["huggingface"], BASIC)
    del state["resnet.embedder.embedder.convolution.weight"]
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)
    with pytest.raises(parity.CheckpointError, match=r"names fit \d+ huggingface"):
        parity.convert(path, tmp_path / "out.pth")


# --- what names cannot tell -----------------------------------------------------------


def test_a_config_beside_timms_weights_tells_of_anti_aliasing(tmp_path: Path):
    config = BASIC.replace(anti_alias="blur")
    state = {n: torch.from_numpy(a) for n, a in state_of(BASIC).items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    text = '{"architecture": "resnetblur18", "num_classes": 7}'
    (tmp_path / "config.json").write_text(text)
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        found = parity.load(path)
        assert found.config == config
        assert any("anti_alias='blur'" in note for note in found.notes)
    done = parity.convert(tmp_path, tmp_path / "out.safetensors")
    assert done.config == config
    assert parity.load(tmp_path / "out.safetensors").config == config


def test_the_name_of_timms_file_tells_of_anti_aliasing(tmp_path: Path):
    path = tmp_path / "resnetaa50-1234.pth"
    torch.save({n: torch.from_numpy(a) for n, a in state_of(BASIC).items()}, path)
    found = parity.load(path)
    assert found.config == BASIC.replace(anti_alias="average")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("seresnet18", "attention to channels"),
        ("resnet50_gn", "GroupNorm"),
        pytest.param("ecaresnet26t", "attention", marks=pytest.mark.slow),
        pytest.param("resnetrs50", "attention", marks=pytest.mark.slow),
        pytest.param("senet154", "attention", marks=pytest.mark.exhaustive),
    ],
)
def test_timms_networks_are_known_by_their_keys_and_taken_for_no_other(
    tmp_path: Path, name: str, said: str
):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(name).state_dict(), path)
    state = parity.load(path)
    assert ("32 groups" in str(state.notes)) == (name == "resnet50_gn")
    for framework in ("torch", "flax"):
        parity.create_model(name, framework=framework, weights=path)
    done = parity.convert(path, tmp_path / "out.safetensors", to="nnx")
    assert done.config == get_config(name)
    found = parity.load(tmp_path / "out.safetensors")
    assert all(np.array_equal(found[key], value) for key, value in state.items())
    with pytest.raises(parity.CheckpointError, match=said):
        parity.create_model("resnet50", weights=path)
    with pytest.raises(parity.CheckpointError, match=r"there 'none'|there 'batch'"):
        parity.convert(path, tmp_path / "theirs.safetensors", to="jaxnn")


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({}, "resnetblur18"),
        ({"layers": (3, 4, 6, 3), "stem": "deep", "shortcut": "D"}, "resnetaa34d"),
        ({"layers": (3, 4, 6, 3)}, ""),
    ],
)
def test_without_a_name_that_tells_it_is_said_what_is_assumed(
    tmp_path: Path, settings: dict[str, Any], theirs: str
):
    config = get_config("resnet18").replace(**settings)
    for name, said in (("weights.pth", bool(theirs)), ("resnet18.pth", False)):
        parity.save(tmp_path / "ours.pth", state_of(config), overwrite=True)
        state = torch.load(tmp_path / "ours.pth", weights_only=True)
        torch.save(dict(state), tmp_path / name)
        notes = str(parity.load(tmp_path / name).notes)
        assert re.findall("not timm's ([^,]+),", notes) == [theirs] * said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (pickle.dumps({"a": 1}), "plain pickle"),
        (b"\x12\x01" + bytes(30), "gluon_in1k"),
        (b"\x08\x07\x12\x07pytorch" + bytes(30), "ONNX"),
        # As tf.saved_model.save and tf.train.Checkpoint begin and end.
        (b"\x08\x01\x12\x97\x08\x0a\x05" + bytes(30), "TensorFlow's"),
        (b"\0\0\2\x08\1" + bytes(40) + bytes.fromhex(INDEX), "TensorFlow's"),
    ],
)
def test_what_cannot_be_read_is_known_with_the_way_out(
    tmp_path: Path, data: bytes, said: str
):
    path = tmp_path / "weights.bin"
    path.write_bytes(data)
    text = str(refused(path, said))
    assert re.search(r"numpy\.savez|timm has|Use the weights", text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("visual.attnpool.positional_embedding", "CLIP"),
        ("resnet/root_block/standardized_conv2d/kernel", "BiT"),
        ("conv2_block1_preact_bn.gamma", "V2"),
        ("res2a_branch2a.kernel", "2016"),
        ("blocks.0.se.fc1.weight", "attention to channels"),
    ],
)
def test_networks_of_others_are_refused_by_name(tmp_path: Path, name: str, said: str):
    path = tmp_path / "weights.safetensors"
    parity.save(path, {name: np.ones(3, np.float32)})
    with pytest.raises(parity.CheckpointError, match=said) as error:
        parity.convert(path, tmp_path / "out.pth")
    assert re.search("is from|`resnet-twins dialects`", str(error.value))


def test_what_a_config_cannot_say_is_said():
    assert of_name("resnet50d.a1_in1k")["anti_alias"] == "none"
    for name in ("seresnet51", "test_resnet", "resnetaa18", "my-resnet50"):
        assert of_name(name) == {}
    for name in ("resnet50c", "resnet101d", "resnext50d_32x4d", "resnetaa101d"):
        assert of_name(name)["shortcut"] == ("B" if name.endswith("c") else "D")
    assert told_settings({"architecture": 3}) == {}


def test_a_config_tells_apart_what_has_the_same_names(tmp_path: Path):
    config = BASIC.replace(block="bottleneck", stem="deep", shortcut="B")
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(in_words_of(parity.DIALECTS["jaxnn"], config), path)
    assert parity.load(path).config == config.replace(shortcut="D")
    assert "shortcut='D'" in str(parity.load(path).notes)
    (tmp_path / "config.json").write_text('{"architecture": "resnet50c"}')
    found = parity.load(path)
    assert found.config == config
    assert "shortcut" not in found.guessed
    assert parity.convert(path, tmp_path / "out.pth").config == config


def test_a_config_of_something_else_does_not_matter(tmp_path: Path):
    path = tmp_path / "weights.pth"
    torch.save({n: torch.from_numpy(a) for n, a in state_of(BASIC).items()}, path)
    for text in ("{", '{"model_type": "resnet", "hidden_act": "gelu"}'):
        (tmp_path / "config.json").write_text(text)
        assert parity.load(path).config is None


def test_what_is_named_is_not_assumed(tmp_path: Path):
    config = get_config("resnet18").replace(anti_alias="blur")
    state = {n: torch.from_numpy(a) for n, a in state_of(config).items()}
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    done = parity.convert(path, tmp_path / "out.pth", config=config)
    assert not any("assumed" in note for note in done.notes)
    assert parity.load(tmp_path / "out.pth").config == config


def test_another_padding_than_a_dialects_is_named(tmp_path: Path):
    there = BASIC.replace(block_padding="same", pool_padding="same")
    path = tmp_path / "weights.msgpack"
    parity.save(path, state_of(there), config=there, dialect="flax-example")
    with pytest.raises(parity.CheckpointError, match="Make the network with block_pa"):
        parity.create_model(BASIC, weights=path)
    model = parity.create_model(there, weights=path)
    assert model.config == there


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1e999999999}' + "]"])
def test_a_config_that_is_none_is_one_line(tmp_path: Path, text: str):
    path = tmp_path / "pytorch_model.bin"
    torch.save({n: torch.from_numpy(a) for n, a in state_of(BASIC).items()}, path)
    (tmp_path / "config.json").write_text(text)
    refused(path, "config.json beside it is no")


def test_a_file_of_two_dtypes_is_cast_when_asked(tmp_path: Path, call: Any):
    source, target = tmp_path / "a.pth", tmp_path / "b.pth"
    state = {n: torch.from_numpy(a) for n, a in state_of(BASIC).items()}
    state["fc.weight"] = state["fc.weight"].half()
    torch.save(state, source)
    with pytest.raises(parity.CheckpointError, match=r"fc\.weight float16.*--dtype"):
        parity.convert(source, target)
    _, err = call("convert", source, target, "--dtype", "bfloat16")
    assert "taken from float16, float32 to bfloat16" in err
    expected = parity.cast(state, "bfloat16")
    assert differing_bits(parity.load(target), expected) == {}


def test_a_state_without_a_configuration_is_written_as_what_it_is(tmp_path: Path):
    parity.save(tmp_path / "folder", state_of(BASIC), dialect="huggingface")
    found = parity.load(tmp_path / "folder")
    assert found.config == BASIC
    assert "stride_on" in found.guessed
    with pytest.raises(parity.CheckpointError, match="no network known here"):
        parity.save(tmp_path / "b", {"a": np.ones(3)}, dialect="huggingface")


def test_what_stands_in_the_way_of_writing_is_named(tmp_path: Path):
    path, config = tmp_path / "weights.msgpack", BASIC.replace(stride_on="3x3")
    with pytest.raises(parity.CheckpointError, match="block_padding is 'torch', there"):
        parity.save(path, state_of(config), config=config, dialect="flax-example")
    assert not path.exists()


def test_the_command_lists_and_converts(tmp_path: Path, call: Any):
    listed, _ = call("dialects")
    assert all(name in listed for name in parity.DIALECTS)
    source, folder = tmp_path / "a.pth", tmp_path / "folder"
    torch.save({n: torch.from_numpy(a) for n, a in state_of(BASIC).items()}, source)
    call("convert", str(source), str(folder), "--to", "huggingface")
    names = {"README.md", "config.json", "model.safetensors"}
    assert {p.name for p in folder.iterdir()} == names
    call("convert", str(folder), str(tmp_path / "b.pth"), "--from", "huggingface")
    assert differing_bits(parity.load(tmp_path / "b.pth"), state_of(BASIC)) == {}
