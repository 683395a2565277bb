"""What training drops: the same in both twins, and where timm drops it."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from flax import nnx
from timm.layers import drop as timms

import parity
import resnet_flax
import resnet_torch
from parity.judging.distance import deviation
from parity.judging.tolerances import (
    CEILINGS,
    FLOAT64_BUFFERS,
    G1_FORWARD,
    UNIT_ROUNDOFF,
)
from resnet_flax.dropping import DropBlock2d as FlaxDropBlock2d
from resnet_flax.dropping import DropPath as FlaxDropPath
from resnet_torch.dropping import Drop, DropBlock2d, DropPath
from tests.support.networks import DROPPING, flax_like, images, random_torch
from tests.twins.test_family import NARROW, SHALLOW, shallow, theirs_and_ours

FLOAT32 = CEILINGS["float32"].ceiling


def test_both_twins_drop_the_same_with_gradients_call_after_call():
    model = random_torch(DROPPING).double().train()
    x = images(DROPPING, 70, 97, n=3)
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")

        @nnx.jit
        def step(twin: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            def loss(twin: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
                y = twin(x)
                return (y**2).sum(), y

            gradient, y = nnx.grad(loss, argnums=1, has_aux=True)(twin, x)
            return y, gradient

        outputs = []
        for seed in (0, 0, 7):
            if seed:
                model.seed_drops(seed)
                twin.seed_drops(seed)
            given = torch.from_numpy(x).requires_grad_()
            expected = model(given)
            (expected**2).sum().backward()
            found, gradient = step(twin, jnp.asarray(x.transpose(0, 2, 3, 1)))
            y = expected.detach().numpy()
            assert deviation(np.asarray(found), y).l2 <= FLOAT64_BUFFERS
            assert given.grad is not None
            by_images = np.asarray(gradient).transpose(0, 3, 1, 2)
            assert deviation(by_images, given.grad.numpy()).l2 <= FLOAT64_BUFFERS
            outputs.append(y)
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert deviation(one, other).l2 > 1e-3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # dynamo's own imports
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # behind a break
def test_what_is_dropped_in_a_compiled_training_is_the_same():
    model = random_torch(DROPPING).train()
    x = torch.from_numpy(images(DROPPING, 70, 97, n=3).astype(np.float32))
    expected = [model(x) for _ in range(9)]
    state = model.state_dict()
    model.seed_drops(0)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    frames, made, found = torch._dynamo.utils.counters["frames"], [], []
    for _ in expected:
        found.append(compiled(x))
        made.append(frames["total"])
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(found[0], found[1])
    assert model.state_dict().keys() == state.keys()
    # A mask is no part of the graphs: none is made again as the calls are counted.
    assert made[0] == made[-1] > 0
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="drawn by numpy"):
        torch.compile(model, backend="eager", fullgraph=True)(x)


def test_a_seed_begins_anew():
    model = random_torch(DROPPING).train()
    x = torch.from_numpy(images(DROPPING, 70, 97, n=3).astype(np.float32))
    first = model(x)
    assert not torch.equal(model(x), first)
    model.seed_drops(0)
    # Batch norms in training mode note statistics, and do not use them.
    assert torch.equal(model(x), first)


def test_in_evaluation_nothing_is_dropped_and_the_state_has_no_counts():
    plain = random_torch(DROPPING.as_function()).eval()
    model = random_torch(DROPPING).eval()
    twin, twins = flax_like(plain), flax_like(model)
    assert parity.entries(model) == parity.entries(plain) == parity.entries(twins)
    x = images(DROPPING, 70, 97).astype(np.float32)
    y = jnp.asarray(x.transpose(0, 2, 3, 1))
    for each in (twin, twins):
        each.eval()
    with torch.no_grad():
        x_ = torch.from_numpy(x)
        assert torch.equal(model(x_), plain(x_))
        fused = resnet_torch.fuse(model)(x_)
    assert np.array_equal(twins(y), twin(y))
    found = np.asarray(resnet_flax.fuse(twins)(y))
    assert deviation(found, fused.numpy()).l2 <= FLOAT32
    assert not [m for m in plain.modules() if isinstance(m, DropPath)]
    assert not [m for _, m in nnx.iter_modules(twin) if isinstance(m, FlaxDropPath)]


@pytest.mark.parametrize("name", ["resnet18", "seresnet50", "ecaresnet26t"])
def test_in_a_whole_network_it_is_dropped_where_timm_drops(name: str):
    rates = {"drop_path_rate": 0.4, "drop_block_rate": 0.3}
    config = shallow(name, **rates)
    model, ours = theirs_and_ours(name, config, channels=NARROW, **SHALLOW, **rates)
    there = dict(model.named_modules())
    kinds = (timms.DropPath, timms.DropBlock2d)
    places = [place for place, module in there.items() if isinstance(module, kinds)]
    drops = {p: m for p, m in ours.named_modules() if isinstance(m, Drop)}
    assert list(drops) == places
    for place, drop in drops.items():  # the same masks; where they fall is timm's
        above, _, last = place.rpartition(".")
        setattr(there[above], last, copy.deepcopy(drop))
    for network in (model, ours):
        network.train()
    x = torch.from_numpy(images(config, 64, 96))
    expected, found = model(x), ours(x)
    assert deviation(found.detach().numpy(), expected.detach().numpy()).l2 < G1_FORWARD
    with jax.enable_x64(True):
        twin = flax_like(ours, "float64")
        twin.train()
        theirs = np.asarray(twin(jnp.asarray(x.numpy().transpose(0, 2, 3, 1))))
    assert deviation(theirs, expected.detach().numpy()).l2 < G1_FORWARD
    ours.seed_drops(1)
    assert deviation(ours(x).detach().numpy(), expected.detach().numpy()).l2 > 1e-3


def test_the_share_grows_from_block_to_block_as_timms():
    config = DROPPING.replace(layers=(2, 3, 2, 1), widths=(8,) * 4, drop_block_rate=0.1)
    ours = resnet_torch.create_model(config)
    theirs = timm.create_model(
        "resnet18",
        layers=config.layers,
        channels=config.widths,
        drop_path_rate=0.5,
        drop_block_rate=0.1,
    )
    rates, blocks = [], []
    for model, path, block in (
        (ours, DropPath, DropBlock2d),
        (theirs, timms.DropPath, timms.DropBlock2d),
    ):
        found: dict[str, Any] = dict(model.named_modules())
        rates.append({n: m.drop_prob for n, m in found.items() if isinstance(m, path)})
        blocks.append(
            {
                name: (
                    module.drop_prob,
                    getattr(module, "square", None) or module.block_size,
                    getattr(module, "weight", None) or module.gamma_scale,
                )
                for name, module in found.items()
                if isinstance(module, block)
            }
        )
    ours_, theirs_ = (np.array(list(r.values())) for r in rates)
    assert list(rates[0]) == list(rates[1])
    error = np.abs(ours_ - theirs_)
    assert error.max() <= 4 * UNIT_ROUNDOFF["float64"]
    assert len(rates[0]) == 7  # none in the first of eight blocks
    assert blocks[0] == blocks[1]
    assert len(blocks[0]) == 3


@pytest.mark.parametrize("square", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(3, 8), (7, 6), (4, 4)])
def test_what_is_dropped_is_what_timm_drops_for_the_same_draw(
    monkeypatch: pytest.MonkeyPatch, square: int, size: tuple[int, int]
):
    x = torch.randn(3, 5, *size, dtype=torch.float64)
    layer = DropBlock2d(0.4, number=2, square=square, weight=0.5).train()
    drawn = torch.from_numpy(layer._uniform(0, (3, 1, *size)))

    def bernoulli(self: torch.Tensor, p: float) -> torch.Tensor:
        return self.copy_((drawn < p).to(self.dtype))

    monkeypatch.setattr(torch.Tensor, "bernoulli_", bernoulli)
    expected = timms.drop_block_2d(x, 0.4, square, 0.5)
    found = layer(x)
    # The scale that both give what is kept is a float32.
    limit = 2 * UNIT_ROUNDOFF["float32"]
    assert deviation(found.numpy(), expected.numpy()).l2 <= limit
    assert torch.equal(found == 0, expected == 0)
    drawn = torch.from_numpy(layer._uniform(0, (3, 1, 1, 1))) * 0 + 0.5
    path = DropPath(0.4, number=2).train()
    kept = torch.from_numpy(path.kept(0, (3, 5, *size)))
    drawn = 1 - kept  # 0 is below the share that is kept
    assert torch.equal(path(x), timms.drop_path(x, 0.4, training=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("many", [3, 90])  # the pixels of 90 are beyond float16
def test_in_half_types_both_twins_drop_and_scale_as_timm_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, dtype: str, many: int
):
    how: dict[str, Any] = {"number": 2, "square": 3, "weight": 0.5}
    layers = (DropPath(0.3, number=2).train(), DropBlock2d(0.3, **how).train())
    twins = (FlaxDropPath(0.3, number=2), FlaxDropBlock2d(0.3, **how))
    x = torch.randn(many, 4, 27, 31, dtype=getattr(torch, dtype))
    drawn = torch.empty(0)

    def bernoulli(self: torch.Tensor, p: float) -> torch.Tensor:
        given = drawn >= 1 - p if self.ndim == 4 and self.shape[2] == 1 else drawn < p
        return self.copy_(given.to(self.dtype))

    monkeypatch.setattr(torch.Tensor, "bernoulli_", bernoulli)
    y = jnp.asarray(x.float().numpy().transpose(0, 2, 3, 1), dtype)
    for layer, twin in zip(layers, twins, strict=True):
        if isinstance(layer, DropPath):
            drawn = torch.from_numpy(layer._uniform(0, (many, 1, 1, 1)))
            expected = timms.drop_path(x, 0.3, training=True)
        else:
            drawn = torch.from_numpy(layer._uniform(0, (many, 1, 27, 31)))
            expected = timms.drop_block_2d(x, 0.3, 3, 0.5)
        found, given = layer(x), twin(y)
        assert (found.dtype, given.dtype) == (x.dtype, y.dtype)
        assert expected.any()
        assert torch.equal(found, expected)
        nchw = np.asarray(given, np.float32).transpose(0, 3, 1, 2)
        assert np.array_equal(nchw, expected.float().numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_of_a_map_that_is_dropped_whole_zeros_are_left(
    monkeypatch: pytest.MonkeyPatch, dtype: str
):
    x = torch.ones(1, 4, 3, 5, dtype=getattr(torch, dtype))  # timm's is NaN in float16
    y: Any = jnp.ones((1, 3, 5, 4), dtype)
    for kind, ones in ((DropBlock2d, x), (FlaxDropBlock2d, y)):
        none = np.zeros((1, 1, 3, 5), np.float32)
        monkeypatch.setattr(kind, "kept", lambda *_, none=none: none)
        layer: Any = kind(0.3, number=0, square=3, weight=1.0)
        assert float(abs(layer(ones)).max()) == 0


def test_the_shares_are_about_those_that_were_asked_for():
    path = DropPath(0.3, number=1).train()
    kept = [path.kept(i, (1000, 1, 1, 1)).mean() for i in range(20)]
    assert abs(np.mean(kept) - 0.7) < 0.01
    block = DropBlock2d(0.2, number=1, square=3, weight=1.0)
    kept = [block.kept(i, (8, 1, 40, 40)).mean() for i in range(20)]
    assert 0.78 < np.mean(kept) < 0.86


@pytest.mark.slow
def test_the_check_leaves_out_what_is_dropped():
    model = random_torch(DROPPING)
    x = images(DROPPING, 70, 97).astype(np.float32)
    report = parity.check(model, flax_like(model), x, gates=["G0", "G1 training"])
    assert report.ok, str(report)
    other = flax_like(random_torch(DROPPING.replace(drop_path_rate=0.25)))
    assert not parity.check(model, other, x, gates=["G1 training"]).ok
