"""Files of trainings with more than one network, read by what their messages advise."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import parity
from parity.weights.beside import advice_on
from parity.weights.digest import differing_bits
from parity.weights.twins import entries_of
from resnet_spec import ResNetConfig

WHOLE = ResNetConfig(block="basic", layers=(2, 1, 3), widths=(8, 16, 24), num_classes=7)
BODY = WHOLE.replace(include_top=False, num_classes=1000)

State = dict[str, torch.Tensor]


def state_of(config: ResNetConfig, seed: int = 3) -> dict[str, np.ndarray]:
    return parity.random_state(entries_of(config), seed=seed)


def tensors(config: ResNetConfig, seed: int = 3) -> State:
    return {n: torch.from_numpy(a) for n, a in state_of(config, seed).items()}


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def layers(*names: str) -> State:
    """Linear layers, as heads and projectors have them."""
    return {
        f"{name}.{leaf}": torch.ones(5, 5) if leaf == "weight" else torch.ones(5)
        for name in names
        for leaf in ("weight", "bias")
    }


def pair(first: str, second: str, head: State, config: ResNetConfig = BODY) -> State:
    """Two networks of which only the first is the one that is asked for."""
    one, other = tensors(config) | head, tensors(config, 4) | head
    return under(first, one) | under(second, other)


QUEUE = {
    "module.queue": torch.ones(4, 5),
    "module.queue_ptr": torch.zeros(1, dtype=torch.int64),
}
TWO = layers("fc.0", "fc.2")
SGD = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}

FILES: dict[str, tuple[ResNetConfig, Callable[[], Any]]] = {
    "MoCo v1": (
        WHOLE,
        lambda: {
            "state_dict": pair("module.encoder_q.", "module.encoder_k.", {}, WHOLE)
            | QUEUE,
            "optimizer": SGD,
        },
    ),
    "MoCo v2": (
        BODY,
        lambda: {
            "state_dict": pair("module.encoder_q.", "module.encoder_k.", TWO) | QUEUE,
            "arch": "resnet50",
        },
    ),
    "MoCo v3": (
        BODY,
        lambda: {
            "state_dict": pair("module.base_encoder.", "module.momentum_encoder.", TWO)
            | layers("module.predictor.0"),
            "epoch": 3,
        },
    ),
    "BYOL": (
        WHOLE,
        lambda: (
            pair("online_encoder.net.", "target_encoder.net.", {}, WHOLE)
            | layers("online_encoder.projector.0", "online_predictor.0")
        ),
    ),
    "DINO": (
        BODY,
        lambda: {
            "student": under("module.backbone.", tensors(BODY, 4)),
            "teacher": under("backbone.", tensors(BODY))
            | layers("head.mlp.0")
            | {"head.last_layer.weight_g": torch.ones(5, 1)},
            "optimizer": SGD,
        },
    ),
    "SwAV": (
        BODY,
        lambda: (
            under("module.", tensors(BODY))
            | layers("module.projection_head.0", "module.prototypes")
        ),
    ),
    "SimCLR": (
        BODY,
        lambda: {"state_dict": under("backbone.", tensors(BODY) | TWO)},
    ),
    "Barlow Twins": (
        BODY,
        lambda: {
            "model": under("module.backbone.", tensors(BODY))
            | layers("module.projector.0")
            | {"module.bn.running_mean": torch.ones(5)},
            "optimizer": SGD,
        },
    ),
    "VICReg": (
        BODY,
        lambda: {
            "model": under("module.backbone.", tensors(BODY))
            | layers("module.projector.0")
        },
    ),
    "segmentation": (
        BODY,
        lambda: (
            under("backbone.", tensors(BODY))
            | layers("classifier.0.convs.0.0", "classifier.4", "aux_classifier.4")
        ),
    ),
    "smp": (
        BODY,
        lambda: (
            under("encoder.", tensors(BODY))
            | layers("decoder.blocks.0.conv1.0", "segmentation_head.0")
        ),
    ),
    "detection": (
        BODY,
        lambda: (
            under("backbone.body.", tensors(BODY))
            | layers(
                "backbone.fpn.inner_blocks.0.0",
                "rpn.head.cls_logits",
                "roi_heads.box_head.fc6",
            )
        ),
    ),
    "thop": (
        WHOLE,
        lambda: (
            tensors(WHOLE)
            | {"total_ops": torch.ones(1), "layer1.0.conv1.total_params": torch.ones(1)}
        ),
    ),
    "optimizer.state_dict() beside": (
        WHOLE,
        lambda: {"model": tensors(WHOLE), "optimizer": SGD, "loss": 0.3},
    ),
    "robustness": (
        WHOLE,
        lambda: {
            "model": pair("module.model.", "module.attacker.model.", {}, WHOLE)
            | {"module.normalizer.new_mean": torch.ones(3)}
        },
    ),
    "strangers of several kinds": (
        WHOLE,
        lambda: under("net.", tensors(WHOLE) | layers("fca", "[x]", "extra/a")),
    ),
}


def following(path: Path, out: Path) -> parity.Conversion:
    """Converts a file, with whatever the messages say should be asked for."""
    asked: dict[str, Any] = {}
    for _ in range(4):
        try:
            return parity.convert(path, out, **asked)
        except parity.CheckpointError as error:
            for option, value in re.findall(r"--(\w+) (\S+)", str(error)):
                if option == "ignore":
                    asked.setdefault(option, []).append(value.strip("'"))
                else:
                    asked[option] = value
    raise AssertionError(f"no advice led to the end: {asked}")


@pytest.mark.parametrize("name", FILES)
def test_what_messages_advise_leads_to_the_network(tmp_path: Path, name: str):
    config, wrapped = FILES[name]
    path, out = tmp_path / "theirs.pth", tmp_path / "out.pth"
    torch.save(wrapped(), path)
    assert following(path, out).config == config
    assert differing_bits(parity.load(out), state_of(config)) == {}


def test_nothing_of_the_network_is_advised_to_be_left_out():
    kept = ["a.fc.weight", "a.conv1.weight"]
    strangers = ["a.fc1.bias", "a.fc.weight_v", "a.fc.0.weight", "b.c.d", "b/e"]
    assert advice_on(strangers, kept) == (
        "Leave these out with --ignore 'a.fc1*' --ignore 'a.fc.weight_v*' "
        "--ignore 'a.fc.0*' --ignore 'b*'"
    )
    assert advice_on(["a.fc"], kept).endswith("--ignore 'a.fc'")


def senet() -> State:
    """What kuangliu's SENet18 has: norms before convolutions, and 1x1 for channels."""
    found: State = {"conv1.weight": torch.ones(64, 3, 3, 3)}
    norms = {"bn1": 64}
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            at = f"layer{stage}.{block}"
            norms |= {f"{at}.bn1": before, f"{at}.bn2": width}
            found |= {
                f"{at}.conv1.weight": torch.ones(width, before, 3, 3),
                f"{at}.conv2.weight": torch.ones(width, width, 3, 3),
                f"{at}.fc1.weight": torch.ones(width // 16, width, 1, 1),
                f"{at}.fc2.weight": torch.ones(width, width // 16, 1, 1),
            }
            if before != width:
                found[f"{at}.shortcut.0.weight"] = torch.ones(width, before, 1, 1)
            before = width
    for norm, channels in norms.items():
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            found[f"{norm}.{leaf}"] = torch.ones(channels)
    return found | {"linear.weight": torch.ones(10, 512), "linear.bias": torch.ones(10)}


def test_no_advice_makes_kuanglius_senet_a_network_here(tmp_path: Path):
    path = tmp_path / "ckpt.pth"
    torch.save({"net": under("module.", senet()), "acc": 95.0}, path)
    with pytest.raises(parity.CheckpointError) as error:
        parity.convert(path, tmp_path / "out.pth")
    assert "--ignore '" not in str(error.value)
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("prefix", ["", "net."])
def test_what_stands_within_blocks_is_not_advised_to_be_left_out(
    tmp_path: Path, prefix: str
):
    path = tmp_path / "weights.pth"
    state = tensors(WHOLE) | layers("layer1.0.mix", "extra")
    torch.save(under(prefix, state), path)
    with pytest.raises(parity.CheckpointError, match=r"layer1\.0\.mix") as error:
        parity.convert(path, tmp_path / "out.pth")
    assert "--ignore '" not in str(error.value)
