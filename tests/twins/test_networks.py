"""What users do with a network of either twin: its halves, a new head, wrong input."""

from __future__ import annotations

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
import resnet_torch
from parity.judging.distance import deviation
from parity.judging.tolerances import G1_FORWARD
from resnet_spec import ResNetConfig
from tests.support.networks import (
    TINY,
    TINY_BOTTLENECK,
    flax_like,
    images,
    random_torch,
)

SIGNAL = TINY.replace(dimensions=1, head="signal", signal_width=64, stem="3x3")
CONV = TINY.replace(head="conv")
HEADS = {
    "linear": (TINY_BOTTLENECK, (40, 33)),
    "signal": (SIGNAL, (1, 64)),
    "conv": (CONV, (90, 120)),
}


def _image(config: ResNetConfig, *size: int, n: int = 2) -> tuple[Any, Any]:
    x = images(config, *size, n=n).astype(np.float32)
    return torch.from_numpy(x), jnp.asarray(x.transpose(0, 2, 3, 1))


def _twins(config: ResNetConfig) -> tuple[Any, Any]:
    model = random_torch(config).eval()
    twin = flax_like(model)
    twin.eval()
    return model, twin


@pytest.mark.parametrize("kind", HEADS)
def test_the_network_is_its_two_halves_in_both_twins(kind: str):
    config, size = HEADS[kind]
    model = random_torch(config).double().eval()
    x = images(config, *size)
    with torch.no_grad():
        features = model.forward_features(torch.from_numpy(x))
        logits = model.forward_head(features)
        assert torch.equal(logits, model(torch.from_numpy(x)))
    assert features.shape[1] == model.num_features == config.num_features
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")
        twin.eval()
        y = jnp.asarray(x.transpose(0, 2, 3, 1))
        theirs = twin.forward_features(y)
        assert theirs.shape[-1] == twin.num_features
        nchw = np.asarray(theirs).transpose(0, 3, 1, 2)
        assert deviation(nchw, features.numpy()).l2 <= G1_FORWARD
        assert np.array_equal(twin.forward_head(theirs), twin(y))
        assert model.num_classes == twin.num_classes == 7
        with torch.no_grad():
            pooled = model.forward_head(features, pre_logits=True)
        same = twin.forward_head(theirs, pre_logits=True)
        assert deviation(np.asarray(same), pooled.numpy()).l2 <= G1_FORWARD
        last = model.get_submodule("fc2" if kind == "conv" else "fc")
        with torch.no_grad():
            assert torch.equal(last(pooled).flatten(), logits.flatten())


def test_features_before_the_logits_are_timms():
    theirs: Any = timm.create_model("resnet18").double().eval()
    model = resnet_torch.create_model("resnet18", dtype=torch.float64).eval()
    parity.load_state_dict(model, theirs.state_dict())
    x = torch.from_numpy(images(model.config, 40, 33))
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        theirs.reset_classifier(0)
        assert torch.equal(theirs(x), expected)
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert deviation(pooled.numpy(), expected.numpy()).l2 <= G1_FORWARD


def test_what_is_no_map_is_no_input_of_a_head():
    model, twin = _twins(TINY)
    n = TINY.num_features
    for network, x, last in (
        (model, torch.zeros(2, 3, 3, n), f"n, {n}, h, w"),
        (model, torch.zeros(2, n), f"n, {n}, h, w"),
        (twin, jnp.zeros((2, n, 3, 3)), f"n, h, w, {n}"),
        (twin, jnp.zeros((2, n)), f"n, h, w, {n}"),
    ):
        with pytest.raises(ValueError, match=rf"the head got shape .*\({last}\)$"):
            network.forward_head(x)
    with pytest.raises(ValueError, match=r"got a numpy.*torch\.from_numpy"):
        model.forward_head(np.zeros((2, n, 3, 3), N))
    with pytest.raises(ValueError, match=r"got a torch.*jnp\.asarray"):
        twin.forward_head(torch.zeros(2, 3, 3, n))


def test_images_of_another_dtype_are_right_where_torch_casts_them():
    model, _ = _twins(TINY)
    x, _ = _image(TINY, 40, 33)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == model(x.bfloat16()).dtype == torch.bfloat16
        with pytest.raises(ValueError, match=r"float64.*x\.to\(torch\.float32\)"):
            model(x.double())
    assert model.to("meta")(x.to("meta")).shape == (2, 7)


def test_a_network_without_classes_is_told_of_the_features_before_them():
    with pytest.raises(ValueError, match=r"num_classes is 0; .*pre_logits=True.*top"):
        resnet_torch.create_model("resnet18", num_classes=0)


def test_without_top_the_head_returns_the_map_and_tells_no_classes_apart():
    model, twin = _twins(TINY.replace(include_top=False))
    x, y = _image(TINY, 40, 33)
    with torch.no_grad():
        assert torch.equal(model(x), model.forward_features(x))
    assert np.array_equal(twin(y), twin.forward_features(y))
    assert model.num_classes == twin.num_classes == 0
    with pytest.raises(ValueError, match="made without a head"):
        model.reset_head(3)
    with pytest.raises(ValueError, match="made without a head"):
        twin.reset_head(3, rngs=0)


@pytest.mark.parametrize("kind", HEADS)
def test_a_new_head_is_that_of_a_new_network_and_the_body_stays(kind: str):
    config, size = HEADS[kind]
    model, twin = _twins(config)
    before = parity.state_dict(model)
    model.reset_head(3, generator=torch.Generator().manual_seed(1))
    twin.reset_head(3, rngs=1)
    new = config.replace(num_classes=3)
    assert model.config == twin.config == new
    expected = parity.entries(resnet_torch.create_model(new))
    x, y = _image(config, *size)
    for network, batch in ((model, x), (twin, y)):
        assert parity.entries(network) == expected
        assert network.num_classes == 3
        after = parity.state_dict(network)
        heads = set()
        for name, value in after.items():
            if name.partition(".")[0] in model.head_names:
                heads.add(name)
                assert before[name].shape != value.shape or np.any(
                    before[name] != value
                )
            else:
                np.testing.assert_array_equal(before[name], value)
        assert heads
        assert 3 in network(batch).shape
    assert not any(module.training for module in model.modules())


def test_a_new_head_has_the_dtypes_of_the_network_and_the_draw_of_its_source():
    model: Any = resnet_torch.create_model(TINY, dtype=torch.bfloat16)
    twin: Any = resnet_flax.create_model(
        TINY, rngs=0, dtype="float16", param_dtype=jnp.bfloat16
    )
    weights = []
    for seed in (1, 1, 2):
        model.reset_head(5, generator=torch.Generator().manual_seed(seed))
        twin.reset_head(5, rngs=nnx.Rngs(seed))
        assert model.fc.weight.dtype == torch.bfloat16
        assert twin.fc.kernel.dtype == jnp.bfloat16
        assert twin.fc.dtype == "float16"
        weights.append((model.fc.weight.tolist(), twin.fc.kernel.tolist()))
    assert weights[0] == weights[1]
    assert weights[0][0] != weights[2][0]
    assert weights[0][1] != weights[2][1]


def test_a_head_of_no_classes_is_refused_and_nothing_changes():
    model, twin = _twins(TINY)
    before = model.fc.weight, twin.fc.kernel
    with pytest.raises(ValueError, match="num_classes is 0"):
        model.reset_head(0)
    with pytest.raises(ValueError, match="num_classes is 0"):
        twin.reset_head(0, rngs=0)
    assert model.config == twin.config == TINY
    assert (model.fc.weight, twin.fc.kernel) == before


def test_a_seed_or_a_key_will_do_for_rngs():
    sources: list[Any] = [nnx.Rngs(3), 3, np.int64(3), jax.random.key(3)]
    models = [resnet_flax.create_model(TINY, rngs=rngs) for rngs in sources]
    assert len({parity.digest_of(model) for model in models}) == 1


@pytest.mark.parametrize("rngs", [None, True, "0", 0.0, nnx.Rngs(dropout=1)])
def test_other_rngs_are_refused_with_what_will_do(rngs: Any):
    with pytest.raises(
        ValueError, match=r"rngs is a .* a seed, or a key of jax\.random"
    ):
        resnet_flax.create_model(TINY, rngs=rngs)


def test_the_torch_twin_is_made_where_and_as_wanted():
    model: Any = resnet_torch.create_model(TINY, device="meta", dtype=torch.float16)
    tensors = model.state_dict().values()
    assert {t.device.type for t in tensors} == {"meta"}
    assert {t.dtype for t in tensors} == {torch.float16, torch.int64}
    wide = resnet_torch.create_model(TINY, dtype=torch.float64)
    found = {t.dtype for t in wide.state_dict().values()}
    assert found == {torch.float64, torch.int64}
    weight = wide.get_parameter("fc.weight")
    assert torch.any(weight != weight.float().double())  # drawn in float64


@pytest.mark.parametrize("dtype", [torch.int8, "float32"])
def test_a_dtype_without_fractions_is_refused_by_torch(dtype: Any):
    with pytest.raises(ValueError, match=r"must be one such as torch\.float32"):
        resnet_torch.create_model(TINY, dtype=dtype)


@pytest.mark.parametrize("setting", ["dtype", "param_dtype"])
def test_a_dtype_without_fractions_is_refused_by_flax(setting: str):
    with pytest.raises(ValueError, match=r"must be one such as jnp\.float32"):
        resnet_flax.create_model(TINY, rngs=0, **{setting: "int32"})


@pytest.mark.parametrize("package", [resnet_torch, resnet_flax])
@pytest.mark.parametrize("what", [TINY, "resnet18"])
def test_a_network_made_directly_names_the_function_that_makes_it(package, what):
    kind = type(what).__name__
    with pytest.raises(TypeError, match=rf"got a {kind} instead of .*create_model\("):
        package.ResNet(what)


N = np.float32
WRONG = {
    "torch": [
        (np.zeros((2, 3, 40, 33), N), r"got a numpy.ndarray.*torch\.from_numpy"),
        (jnp.zeros((2, 3, 40, 33)), r"got a jax.*torch tensors"),
        ([[1.0]], r"got a builtins.list.*torch tensors"),
        (
            torch.zeros(2, 40, 33, 3),
            r"\(2, 40, 33, 3\).*channels first: use x\.permute",
        ),
        (torch.zeros(3, 40, 33), r"\(3, 40, 33\).*x\[None\] is a batch of one image"),
        (torch.zeros(40, 33), r"\(40, 33\); it takes images of shape \(n, 3, h, w\)"),
        (torch.zeros(2, 1, 40, 33), r"\(2, 1, 40, 33\); it takes .*channels first$"),
        (torch.zeros(0, 3, 40, 33), r"\(0, 3, 40, 33\), no pixel"),
        (torch.zeros(2, 3, 0, 33), r"\(2, 3, 0, 33\), no pixel"),
        (
            torch.zeros(2, 3, 40, 33).byte(),
            r"images are torch\.uint8.*x\.float\(\) / 255",
        ),
        (torch.zeros(2, 3, 40, 33).bool(), r"images are torch\.bool"),
        (torch.zeros(2, 3, 40, 33).long(), r"images are torch\.int64"),
        (torch.zeros(2, 3, 40, 33).double(), r"float64.*x\.to\(torch\.float32\)"),
        (
            torch.zeros(2, 3, 40, 33).half(),
            r"float16, the network is .*x\.to\(torch\.f",
        ),
        (torch.zeros(2, 3, 40, 33).to_sparse(), r"sparse_coo; .*x\.to_dense\(\)"),
        (
            torch.nested.nested_tensor(
                [torch.zeros(3, 40, 33)] * 2, layout=torch.jagged
            ),
            r"nested tensor.*of one size: torch\.stack",
        ),
        (torch.zeros(1, 3, 8, 5), r"more than one value per channel.*or eval"),
    ],
    "flax": [
        (torch.zeros(2, 40, 33, 3), r"got a torch\.Tensor.*jnp\.asarray"),
        ([[1.0]], r"got a builtins\.list.*arrays of JAX or numpy"),
        (
            jnp.zeros((2, 3, 40, 33)),
            r"\(2, 3, 40, 33\).*channels last: use x\.transpose",
        ),
        (jnp.zeros((40, 33, 3)), r"\(40, 33, 3\).*x\[None\] is a batch of one image"),
        (jnp.zeros((40, 33)), r"\(40, 33\); it takes images of shape \(n, h, w, 3\)"),
        (jnp.zeros((2, 40, 33, 1)), r"\(2, 40, 33, 1\); it takes .*channels last$"),
        (np.zeros((2, 40, 33, 3)), r"float64, the network is float32; use x.astype"),
        (jnp.zeros((0, 40, 33, 3)), r"\(0, 40, 33, 3\), no pixel"),
        (jnp.zeros((2, 40, 0, 3)), r"\(2, 40, 0, 3\), no pixel"),
        (jnp.zeros((2, 40, 33, 3), jnp.uint8), r"images are uint8.*x / 255"),
        (jnp.zeros((2, 40, 33, 3), bool), r"images are bool"),
        (jnp.zeros((2, 40, 33, 3), int), r"images are int32"),
        (jnp.zeros((1, 8, 5, 3)), r"more than one value per channel.*or eval"),
    ],
}


@pytest.mark.parametrize("method", ["__call__", "features", "forward_features"])
@pytest.mark.parametrize(
    ("framework", "x", "message"),
    [(framework, *case) for framework, cases in WRONG.items() for case in cases],
)
def test_what_is_no_batch_of_images_is_refused_in_one_sentence_before_anything_is_done(
    framework: str, x: Any, message: str, method: str
):
    model: Any = random_torch(TINY).train()
    if framework == "flax":
        model = flax_like(model)
    before = parity.state_dict(model)
    with pytest.raises(ValueError, match=message) as error:
        getattr(model, method)(x)
    assert "\n" not in str(error.value)
    after = parity.state_dict(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_one_value_per_channel_will_do_where_no_norm_takes_the_batchs_statistics():
    model, twin = _twins(TINY)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    x, y = _image(TINY, 8, 5, n=1)
    assert model(x).isfinite().all()
    assert jnp.isfinite(twin(y)).all()


def test_numpys_images_are_the_flax_twins_too():
    _, twin = _twins(TINY)
    _, y = _image(TINY, 40, 33)
    assert np.array_equal(twin(np.asarray(y)), twin(y))
