"""Networks made ready for inference, in both twins."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch._inductor.config as inductor

import parity
import resnet_flax
import resnet_torch
from parity.judging.distance import deviation
from parity.judging.tolerances import CEILINGS
from resnet_flax import xla
from tests.support.networks import TINY, flax_like, images, random_torch

FLOAT32 = CEILINGS["float32"].ceiling

WIDE = TINY.replace(widths=(64, 72))


def _pair(framework: str) -> tuple[Any, Any]:
    model: Any = random_torch(WIDE).train()
    if framework == "torch":
        return model, resnet_torch.compile(model)
    model = flax_like(model)
    return model, resnet_flax.compile(model)


def _images(framework: str, n: int, size: tuple[int, int]) -> Any:
    x = images(WIDE, *size, n=n).astype(np.float32)
    if framework == "torch":
        return torch.from_numpy(x)
    return jnp.asarray(x.transpose(0, 2, 3, 1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_a_compiled_network_computes_the_same_for_batches_of_several_sizes(framework):
    model, run = _pair(framework)
    before = parity.state_dict(model)
    cases = (2, (40, 33)), (1, (33, 47)), (2, (40, 33))
    results = [run(_images(framework, *case)) for case in cases]
    after = parity.state_dict(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    kind = torch.Tensor if framework == "torch" else jnp.ndarray
    assert all(isinstance(result, kind) for result in results)
    assert np.array_equal(np.asarray(results[0]), np.asarray(results[2]))
    assert not inductor.freezing
    assert isinstance(run.model, type(model))
    model.eval()
    for result, case in zip(results, cases, strict=True):
        expected = model(_images(framework, *case))
        if framework == "torch":
            expected = expected.detach()
        assert deviation(np.asarray(result), np.asarray(expected)).l2 <= FLOAT32
    with pytest.raises(ValueError, match="is a batch of one image"):
        run(_images(framework, 1, (40, 33))[0])


def test_torch_compiles_a_fused_network_with_constant_weights(monkeypatch):
    asked: dict[str, Any] = {}

    def compiled(model: Any, **settings: Any) -> Any:
        asked.update(settings)
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    model, run = _pair("torch")
    assert asked["options"] == {"freezing": True}
    assert isinstance(run.model.bn1, torch.nn.Identity)
    assert run.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.conv1.weight.is_contiguous()
    assert model.training
    assert not run(_images("torch", 2, (40, 33))).requires_grad


def test_flax_compiles_by_winograd_and_the_faster_settings_on_a_cpu(monkeypatch):
    import jax

    model, run = _pair("flax")
    (state,) = run._run.args
    assert state["layer1"][0]["conv1"]["kernel"].shape == (4, 4, 64, 64)
    lowered = run._run.func.lower(state, _images("flax", 2, (40, 33)))
    text = lowered.compile().as_text()
    assert "ynn_fusion" not in text
    assert xla.compiler_options("inference")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    plain: Any = resnet_flax.compile(model)
    (state,) = plain._run.args
    assert state["layer1"][0]["conv1"]["kernel"].shape == (3, 3, 64, 64)
    assert not model.bn1.use_running_average


@pytest.mark.parametrize("package", [resnet_torch, resnet_flax])
def test_what_is_no_network_is_refused(package: Any):
    with pytest.raises(ValueError, match="fuse takes a resnet_"):
        package.compile(package)
