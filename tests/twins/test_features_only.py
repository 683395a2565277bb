"""Networks that return maps: timm's ``features_only``, in both twins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from flax import nnx

import parity
import resnet_flax
import resnet_onnx
import resnet_torch
from parity.judging.distance import deviation
from parity.judging.tolerances import CEILINGS, FLOAT64_BUFFERS, G1_FORWARD
from parity.weights.digest import differing_bits
from resnet_spec import ResNetConfig, get_config, resolve
from tests.support.networks import TINY, flax_like, images, random_torch
from tests.twins.test_family import NARROW, shallow, sizes

FLOAT32 = CEILINGS["float32"].ceiling
MAPS: dict[str, Any] = {"features_only": True}

# --- timm's own -----------------------------------------------------------------------

CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "three of five": ("resnet50", 32, {"out_indices": (1, 2, 3)}),
    "all": ("resnet26d", 32, {}),
    "dilated, the last two": ("resnet26d", 8, {"out_indices": 2}),
    "the stem's, without the pool's weights": ("resnetrs50", 32, {"out_indices": (0,)}),
    "from the end": ("seresnet18", 16, {"out_indices": (-4, -1)}),
    "blurred": ("resnetblur18", 16, {"out_indices": (0, 3)}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_timms_with_its_keys_and_statistics(case: str):
    name, stride, how = CASES[case]
    config = shallow(name).replace(output_stride=stride, **MAPS, **how)
    theirs: Any = timm.create_model(
        *(name,),
        features_only=True,
        output_stride=stride,
        channels=NARROW,
        layers=config.layers,
        **how,
    )
    ours = resnet_torch.create_model(config)
    assert parity.entries(ours) == parity.entries(theirs)
    assert config.weight_count == sum(p.numel() for p in ours.parameters())
    state = parity.random_state(parity.entries(theirs), seed=0)
    for network in (theirs, ours):
        parity.load_state_dict(network, state)
        network.double()
    info, told = ours.feature_info, theirs.feature_info
    assert info.channels() == told.channels()
    assert info.reduction() == told.reduction()
    assert [n.replace("relu", "act1") for n in info.module_name()] == told.module_name()
    assert info.channels(0) == told.channels(0)
    assert info.reduction([0]) == told.reduction([0])
    for mode in (False, True):
        x = np.random.default_rng(0).standard_normal((2, 3, *sizes(config)[1]))
        with jax.enable_x64(True):
            twin = flax_like(ours, "float64")
            twin.train() if mode else twin.eval()
            graph, tree = nnx.split(twin)

            @jax.jit
            def run(tree: Any, x: Any, graph: Any = graph) -> Any:
                network = nnx.merge(graph, tree)
                return network(x), nnx.state(network)

            found, tree = run(tree, jnp.asarray(x.transpose(0, 2, 3, 1)))
            after = parity.state_dict(nnx.merge(graph, tree))
        with torch.no_grad():
            expected = theirs.train(mode)(torch.from_numpy(x))
            own = ours.train(mode)(torch.from_numpy(x))
        assert len(own) == len(found) == len(expected)
        assert [m.shape[1] for m in own] == info.channels()
        for their, torchs, flaxs in zip(expected, own, found, strict=True):
            assert deviation(torchs.numpy(), their.numpy()).l2 <= G1_FORWARD
            map_ = np.asarray(flaxs).transpose(0, 3, 1, 2)
            assert deviation(map_, their.numpy()).l2 <= FLOAT64_BUFFERS
        for network in (after, parity.state_dict(ours)):
            for key, value in parity.state_dict(theirs).items():
                assert deviation(network[key], value).l2 <= FLOAT64_BUFFERS, key


@pytest.mark.parametrize("indices", [None, (1, 2), (3, 0), 1])
def test_it_returns_what_the_whole_network_has_for_maps(indices: Any):
    whole = random_torch(get_config("cifar_resnet20")).double().eval()
    made = resnet_torch.create_model(
        "cifar_resnet20", out_indices=indices, dtype=torch.float64, **MAPS
    )
    done = parity.load_state_dict(made, whole.state_dict())
    left = {key.partition(".")[0] for key in done.left_out}
    assert left == ({"fc", "layer3"} if indices == (1, 2) else {"fc"})
    x = torch.from_numpy(images(whole.config, 32, 27))
    with torch.no_grad():
        expected, found = whole.feature_maps(x, indices), made.eval()(x)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


# --- weights --------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_a_whole_networks_file_gives_its_maps(framework: Any, tmp_path: Path):
    whole = random_torch(TINY).eval()
    own, others = tmp_path / "own.safetensors", tmp_path / "others.pth"
    parity.save(own, whole)
    torch.save(whole.state_dict(), others)
    state = parity.state_dict(whole)
    for path in (own, others):
        for name in (TINY, TINY.replace(out_indices=(1,), include_top=False)):
            asked: Any = {} if name.out_indices else {"out_indices": (1,), **MAPS}
            made = parity.create_model(name, framework, path, **asked)
            assert made.config.out_indices == (1,)
            assert not getattr(made, "training", not getattr(made, "deterministic", 1))
            left = ("fc.", "layer2.")
            kept = {k: v for k, v in state.items() if not k.startswith(left)}
            assert differing_bits(parity.state_dict(made), kept) == {}


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_its_own_file_says_what_it_returns(framework: Any, tmp_path: Path):
    path = tmp_path / "maps.safetensors"
    config = TINY.replace(out_indices=(1,), **MAPS)
    model = random_torch(config)
    parity.save(path, model)
    asked: Any
    for asked in ({}, {"out_indices": (0, 1), **MAPS}, {"out_indices": (0,), **MAPS}):
        made = parity.create_model(TINY, framework, path, **asked)
        assert made.config == config.replace(**asked)
    assert len(made.feature_info) == 1
    more: Any
    for more in (MAPS, {"features_only": False}):
        with pytest.raises(parity.CheckpointError, match=r"missing.*layer2\.0\.conv1"):
            parity.create_model(TINY, framework, path, **more)


def test_published_weights_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from parity.files import sources

    path = tmp_path / "w.pth"
    torch.save(random_torch("resnet18").state_dict(), path)
    monkeypatch.setattr(sources, "download", lambda published, **_: path)
    monkeypatch.setattr(sources, "load_selected", lambda *_, **__: parity.load(path))
    for name in ("DEFAULT", "timm:resnet18.a1_in1k"):
        model = parity.create_model(
            "resnet18", weights=name, out_indices=(1, 2), output_stride=8, **MAPS
        )
        assert model.stage_names == ("layer1", "layer2")
    with pytest.raises(ValueError, match="is for resnet34"):
        parity.create_model("resnet18", weights="timm:resnet34.a1_in1k", **MAPS)


def test_only_what_the_whole_network_has_is_left_out():
    model = random_torch(TINY.replace(out_indices=(1,), **MAPS))
    whole = parity.state_dict(random_torch(TINY))
    before = parity.state_dict(model)
    for network in (model, flax_like(model), torch.nn.DataParallel(model)):
        for strange in ("layer3.0.conv1.weight", "head.weight"):
            with pytest.raises(parity.CheckpointError, match="unexpected"):
                parity.load_state_dict(network, {**whole, strange: np.zeros(3)})
        less = {k: v for k, v in whole.items() if k != "conv1.weight"}
        with pytest.raises(parity.CheckpointError, match="missing"):
            parity.load_state_dict(network, less)
        assert differing_bits(parity.state_dict(network), before) == {}
        done = parity.load_state_dict(
            network, {f"body.{key}": value for key, value in whole.items()}
        )
        assert {k.split(".")[0] for k in done.left_out} == {"fc", "layer2"}
        assert differing_bits(parity.state_dict(network), whole).keys() == set(
            done.left_out
        )
        parity.load_state_dict(network, before)


# --- what is done with it -------------------------------------------------------------


def _pair(**settings: Any) -> tuple[Any, Any, np.ndarray]:
    config = TINY.replace(features_only=True, **settings)
    model = random_torch(config)
    return model, flax_like(model), images(config, 40, 33).astype(np.float32)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_it_is_fused_scripted_and_compiled_like_others():
    model, twin, x = _pair(stem="deep")
    model.eval()
    twin.eval()
    images = torch.from_numpy(x)
    with torch.no_grad():
        expected = model(images)
        scripted: Any = torch.jit.script(model)
        found = {"fused": resnet_torch.fuse(model)(images), "script": scripted(images)}
    y = jnp.asarray(x.transpose(0, 2, 3, 1))
    compiled: Any = resnet_flax.compile(twin)
    for name, run in (("flax", resnet_flax.fuse(twin)), ("xla", compiled)):
        found[name] = [np.asarray(m).transpose(0, 3, 1, 2) for m in run(y)]
    for name, maps in found.items():
        assert len(maps) == 3
        for ours, theirs in zip(maps, expected, strict=True):
            assert deviation(np.asarray(ours), theirs.numpy()).l2 <= FLOAT32, name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_torchs_compiler_takes_it():
    model, _, x = _pair()
    run: Any = resnet_torch.compile(model.eval(), "auto")
    with torch.no_grad():
        expected = model(torch.from_numpy(x))
    for ours, theirs in zip(run(torch.from_numpy(x)), expected, strict=True):
        assert deviation(ours.numpy(), theirs.numpy()).l2 <= FLOAT32


@pytest.mark.parametrize("indices", [(0,), (0, 1)])
def test_its_stages_are_frozen_like_others(indices: tuple[int, ...]):
    model, twin, x = _pair(out_indices=indices)
    y = jnp.asarray(x.transpose(0, 2, 3, 1))
    before = parity.state_dict(model)
    for network in (model, twin):
        network.freeze(max(indices))
        with pytest.raises(ValueError, match=f"must be from 0 to {max(indices)}"):
            network.freeze(2)
        network.train()
    model(torch.from_numpy(x))
    twin(y)
    for network in (model, twin):
        assert differing_bits(parity.state_dict(network), before) == {}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not jax.tree.leaves(nnx.state(twin, nnx.Param))
    with pytest.raises(ValueError, match="made without a head"):
        model.reset_head(3)


def test_the_check_judges_its_maps():
    model, twin, x = _pair(out_indices=(1,))
    model.eval()
    report = parity.check(model, twin, x, gates=("G0", "G2"))
    assert report.ok
    assert report.shapes["output:0"] == (2, 8, 10, 9)
    twin.layer1[0].bn2.bias.set_value(twin.layer1[0].bn2.bias.get_value() + 1)
    assert not parity.check(model, twin, x, gates=("G2",)).ok


def test_one_value_of_a_channel_is_refused_in_training():
    for indices in ((0,), (2,)):
        model, twin, _ = _pair(out_indices=indices)
        model.train()
        twin.train()
        for network, x in (
            (model, torch.ones(1, 3, 2, 1)),
            (twin, jnp.ones((1, 2, 1, 3))),
        ):
            with pytest.raises(ValueError, match="more than one value per channel"):
                network(x)


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"out_indices": (1,)},
            r"^out_indices is \(1,\); it must be None with a head; "
            "features_only=True leaves that out$",
        ),
        ({"out_indices": (3,), **MAPS}, r"^out_indices is \(3,\); .*from -3 to 2$"),
        ({"out_indices": 4, **MAPS}, "^out_indices is 4; it must be .* from 1 to 3"),
        ({"out_indices": (), **MAPS}, r"^out_indices is \(\); "),
        ({"out_indices": (1,), "features_only": False}, "^out_indices is"),
        ({"features_only": 2}, "^features_only is 2; it must be True or False$"),
        ({"include_top": True, **MAPS}, "None with a head"),
    ],
)
def test_what_goes_not_together_is_refused_in_one_line(settings: Any, match: str):
    for make in (
        lambda **how: resnet_torch.create_model(TINY, **how),
        lambda **how: resnet_flax.create_model(TINY, rngs=0, **how),
        lambda **how: parity.create_model(TINY, **how),
        lambda **how: resolve(TINY, **how),
    ):
        with pytest.raises(ValueError, match=match):
            make(**settings)


def test_the_setting_is_one_of_the_configuration():
    config = TINY.replace(out_indices=[-1, 0], **MAPS)
    assert config.out_indices == (2, 0)
    assert ResNetConfig.from_json(config.to_json()) == config
    assert config.replace(**MAPS) == config
    assert config.replace(output_stride=4).out_indices == (2, 0)
    assert config.replace(features_only=False, include_top=True) == TINY
    shorter = TINY.replace(layers=(1,), widths=(8,), **MAPS)
    assert shorter.out_indices == (0, 1)
    assert hash(shorter) != hash(shorter.replace(out_indices=(0,)))


def test_a_program_of_it_is_refused_in_one_line(tmp_path: Path):
    model, twin, _ = _pair(out_indices=(1,))
    state = parity.state_dict(model)
    refused = r"^out_indices is \(1,\); a (graph|program) has one result"
    with pytest.raises(ValueError, match=refused):
        resnet_onnx.graph(model.config, state)
    for ending in ("onnx", "pt2", "stablehlo"):
        with pytest.raises(ValueError, match=refused):
            parity.export(model, tmp_path / f"maps.{ending}")
    for package, network in ((resnet_torch, model), (resnet_flax, twin)):
        with pytest.raises(ValueError, match="takes a network of one result"):
            package.compile(network, "onnxruntime")
    with pytest.raises(parity.CheckpointError, match="out_indices is"):
        parity.save(tmp_path / "folder", model, format="huggingface")
    assert not [*tmp_path.iterdir()]
