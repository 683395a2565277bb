"""Files that were written for a library give its own network our logits.

Every library is given the file by its own means, in float64 where it has that, at an
even and at an odd size; what it writes itself is read back, and is the same to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import nnx, serialization

import parity
from parity.weights.twins import abstract_torch, entries_of
from resnet_spec import ResNetConfig, get_config

SIZES = [(64, 96), (65, 97)]

SMALL = ResNetConfig(block="basic", layers=(2, 1), widths=(16, 32), num_classes=7)
WIDE = ResNetConfig(block="bottleneck", layers=(1, 2), widths=(16, 32), num_classes=7)
STEM = SMALL.replace(widths=(64, 32))  # jax-resnet's stem and Haiku's are 64 wide
SAME = {"block_padding": "same", "pool_padding": "same"}

Run = Callable[[np.ndarray], Any]


@pytest.fixture(autouse=True)
def wide() -> Any:
    """Others' networks need not be strict, and compute in float64 here."""
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        yield


def state_of(config: ResNetConfig) -> dict[str, np.ndarray]:
    return parity.random_state(entries_of(config), seed=3)


def logits(config: ResNetConfig, images: np.ndarray) -> np.ndarray:
    """The torch twin's, in float64."""
    twin = abstract_torch(config, param_dtype="float64")
    parity.load_state_dict(twin, parity.cast(state_of(config), "float64"))
    with torch.no_grad():
        return twin(torch.from_numpy(images)).numpy()


def distance(config: ResNetConfig, run: Run, size: tuple[int, int]) -> float:
    """Of a library's logits, or its map, from the twin's, relative."""
    images = np.random.default_rng(0).standard_normal((2, 3, *size))
    expected, found = logits(config, images), np.asarray(run(images))
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def written(
    tmp_path: Path, config: ResNetConfig, dialect: str, name: str, **asked: Any
) -> Path:
    """A file in a dialect, of which we read what went in, whosever it is."""
    path = tmp_path / name
    parity.save(path, state_of(config), config=config, dialect=dialect, **asked)
    again(path, config, dialect)
    return path


def again(path: Path, config: ResNetConfig, dialect: str) -> None:
    found, state = parity.load(path), state_of(config)
    assert found.dialect == dialect
    assert found.config == config
    for key, array in state.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(found[key], array, strict=True, err_msg=key)


def proved(
    config: ResNetConfig,
    run: Run,
    *,
    within: float = 1e-12,
    sizes: Any = SIZES,
    **other: Any,
) -> None:
    """The library's network is this one, and not one that differs in a setting."""
    for size in sizes:
        assert distance(config, run, size) < within
    apart = config.replace(**(other or {"norm_eps": 1e-3}))
    assert distance(apart, run, sizes[0]) > 1e-3


def double(arrays: Any) -> Any:
    """A tree's arrays, as JAX has them in float64."""
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), arrays)


def nhwc(images: np.ndarray) -> jax.Array:
    return jnp.asarray(images.transpose(0, 2, 3, 1))


# --- Hugging Face ---------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, WIDE, WIDE.replace(stride_on="1x1")])
def test_transformers_opens_the_folder(tmp_path: Path, config: ResNetConfig):
    transformers = pytest.importorskip("transformers")
    folder = written(tmp_path, config, "huggingface", "folder")
    cls = transformers.ResNetForImageClassification
    model, told = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values())
    run = model.double().eval()
    other: dict[str, Any] = {}
    if config.stride_on == "1x1":
        other["stride_on"] = "3x3"
    proved(config, lambda x: run(torch.from_numpy(x)).logits.detach(), **other)
    cls.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    again(tmp_path / "theirs", config, "huggingface")


def test_transformers_opens_a_body(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = WIDE.replace(include_top=False)
    folder = written(tmp_path, config, "huggingface-model", "folder")
    model = transformers.ResNetModel.from_pretrained(folder).double().eval()
    proved(config, lambda x: model(torch.from_numpy(x)).last_hidden_state.detach())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ],
)
def test_a_network_of_transformers_that_is_none_here_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        depths=[1, 1], hidden_sizes=[64, 128], embedding_size=16, **settings
    )
    model = transformers.ResNetForImageClassification(config)
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(parity.CheckpointError, match=said):
        parity.load(tmp_path / "theirs")


# --- Keras ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of h5py and numpy
@pytest.mark.parametrize("name", ["resnet50.h5", "resnet50.weights.h5"])
def test_keras_applications_load_the_weights(tmp_path: Path, name: str):
    keras = pytest.importorskip("keras")
    config = get_config("resnet50").replace(
        stride_on="1x1", conv_bias=True, norm_eps=1.001e-5, num_classes=7
    )
    path = written(tmp_path, config, "keras", name)
    model = keras.applications.ResNet50(
        weights=None,
        input_tensor=keras.Input((None, None, 3)),
        classes=7,
        classifier_activation=None,
    )
    model.load_weights(path)
    proved(config, lambda x: model([np.float32(nhwc(x))]), within=1e-5)
    theirs = tmp_path / f"theirs.{name.partition('.')[2]}"
    model.save_weights(theirs) if "weights" in name else model.save(theirs)
    again(theirs, config, "keras")
    model.save(tmp_path / "theirs.keras")
    again(tmp_path / "theirs.keras", config, "keras")


# --- Flax Linen -----------------------------------------------------------------------


def variables(path: Path) -> Any:
    return double(serialization.msgpack_restore(path.read_bytes()))


@pytest.mark.parametrize("format", ["msgpack", "orbax"])
@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("dialect", ["flax-example", "algoperf"])
def test_linen_networks_whose_blocks_are_counted(
    tmp_path: Path, dialect: str, config: ResNetConfig, format: Any
):
    from orbax.checkpoint import StandardCheckpointer

    from tests.dialects.linen_networks import Counted

    padding = SAME if dialect == "flax-example" else {"block_padding": "same"}
    config = config.replace(**padding)
    path = written(tmp_path, config, dialect, "weights.msgpack", format=format)
    if format == "orbax":
        tree = double(StandardCheckpointer().restore(path.resolve()))
    else:
        tree = variables(path)
    net = Counted(config=config, capitals=dialect == "algoperf")
    proved(config, lambda x: net.apply(tree, nhwc(x)), block_padding="torch")
    (tmp_path / "theirs").write_bytes(
        serialization.to_bytes(jax.tree.map(np.float32, tree))
    )
    again(tmp_path / "theirs", config, dialect)


def small_of_jax_resnet(jax_resnet: Any, config: ResNetConfig) -> Any:
    kind = "Bottleneck" if config.block == "bottleneck" else ""
    deep = "D" if config.stem == "deep" else ""
    return jax_resnet.ResNet(
        getattr(jax_resnet, f"ResNet{deep}{kind}Block"),
        stem_cls=partial(
            getattr(jax_resnet, f"ResNet{deep}Stem"),
            **({"stem_width": config.widths[0] // 2} if deep else {}),
        ),
        stage_sizes=config.layers,
        hidden_sizes=config.widths,
        n_classes=config.num_classes,
    )


@pytest.mark.parametrize(
    "config",
    [
        *(STEM.replace(block=block) for block in ("basic", "bottleneck")),
        STEM.replace(block="bottleneck", stem="deep", shortcut="D"),
        pytest.param(
            get_config("resnext50_32x4d").replace(num_classes=7),
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=["basic", "bottleneck", "D", "resnext"],
)
def test_jax_resnet(tmp_path: Path, config: ResNetConfig):
    jax_resnet = pytest.importorskip("jax_resnet")
    tree = variables(written(tmp_path, config, "jax-resnet", "weights.msgpack"))
    if config.groups > 1:
        net = jax_resnet.ResNeXt50(n_classes=7)
    else:
        net = small_of_jax_resnet(jax_resnet, config)
    # Its ResNet-D drops the last row of a map of odd height, and then cannot add.
    sizes = SIZES[:1] if config.stem == "deep" else SIZES
    run = jax.jit(lambda x: net.apply(tree, x, mutable=False))
    proved(config, lambda x: run(nhwc(x)), sizes=sizes)


@pytest.mark.parametrize(
    "name", ["ResNet18", pytest.param("ResNet50", marks=pytest.mark.exhaustive)]
)
def test_flaxmodels(tmp_path: Path, name: str):
    flaxmodels = pytest.importorskip("flaxmodels")
    config = get_config(name.lower()).replace(num_classes=7)
    tree = variables(written(tmp_path, config, "flaxmodels", "weights.msgpack"))
    net = getattr(flaxmodels, name)(
        output="logits", pretrained=None, normalize=False, num_classes=7
    )
    run = jax.jit(lambda x: net.apply(tree, x, train=False))
    proved(config, lambda x: run(nhwc(x)), within=1e-6)  # its layers are float32


# --- Flax NNX -------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["orbax", "msgpack", "safetensors"])
def test_the_flax_twins_own_state(tmp_path: Path, format: Any):
    from orbax.checkpoint import StandardCheckpointer

    import resnet_flax

    config = SMALL.replace(stem="deep", shortcut="D")
    path = written(tmp_path, config, "nnx", "weights", format=format)
    if format == "safetensors":
        return
    model = resnet_flax.create_model(config, rngs=0, param_dtype="float64")
    model.eval()
    if format == "orbax":
        tree: Any = StandardCheckpointer().restore(path.resolve())
    else:
        tree = serialization.msgpack_restore(path.read_bytes())
    state = nnx.state(model)
    nnx.replace_by_pure_dict(state, nnx.restore_int_paths(tree))
    nnx.update(model, state)
    found = parity.state_dict(model)
    for name, array in state_of(config).items():
        np.testing.assert_array_equal(found[name], array)


def test_a_checkpoint_of_an_nnx_state_is_read(tmp_path: Path):
    from orbax.checkpoint import StandardCheckpointer

    import resnet_flax

    model = resnet_flax.create_model(SMALL, rngs=0)
    parity.load_state_dict(model, state_of(SMALL))
    for name, tree in {
        "pure": nnx.to_pure_dict(nnx.state(model)),
        "state": nnx.state(model),
    }.items():
        with StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / name, tree)
        again(tmp_path / name, SMALL, "nnx")


def network_of_jaxnn(path: Path, name: str) -> Any:
    """Jaxnn's network with a file's weights, of which it has all and no other."""
    models = pytest.importorskip("jaxnn.models.resnet")
    arrays = safetensors.numpy.load_file(path)
    net = getattr(models, name)(num_classes=7, rngs=nnx.Rngs(0))
    net.eval()
    flat = nnx.to_flat_state(nnx.state(net, (nnx.Param, nnx.BatchStat)))
    assert {".".join(map(str, path)) for path, _ in flat} == set(arrays)
    for path_, variable in flat:
        array = arrays[".".join(map(str, path_))]
        variable.set_value(jnp.asarray(np.float64(array)))
    nnx.update(net, nnx.from_flat_state(flat))
    return net


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of nnx, which it uses
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnet50d", "resnet10t", "resnet50s", "resnet50_gn")
        ),
    ],
)
def test_jaxnn(tmp_path: Path, name: str):
    config, dialect = get_config(name).replace(num_classes=7), "jaxnn"
    other: dict[str, Any] = {}
    if name == "resnet50_gn":
        config, dialect = config.replace(norm_eps=1e-6), "jaxnn-gn"
        other = {"norm_groups": 16}
    path = written(tmp_path, config, dialect, "weights.safetensors")
    net = network_of_jaxnn(path, name)
    # Its average pool counts the padding of maps of odd size.
    sizes = SIZES[:1] if name in ("resnet50d", "resnet10t") else SIZES
    within = 2e-6 if other else 1e-6  # its norms are float32
    proved(config, lambda x: net(nhwc(x)), within=within, sizes=sizes, **other)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of nnx, which it uses
@pytest.mark.parametrize("name", ["resnetblur18", "resnetaa34d"])
def test_what_jaxnn_calls_anti_aliased_is_no_network_here(tmp_path: Path, name: str):
    config = get_config(name).replace(num_classes=7)
    path = written(
        tmp_path, config.replace(anti_alias="none"), "jaxnn", "a.safetensors"
    )
    net = network_of_jaxnn(path, name)
    for option in ("none", "average", "blur"):
        other = config.replace(anti_alias=option)
        assert distance(other, lambda x: net(nhwc(x)), SIZES[0]) > 0.01


# --- Haiku ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        *(
            STEM.replace(block=block, layers=(1, 1, 2, 1), widths=(64, 16, 16, 32))
            for block in ("basic", "bottleneck")
        ),
        pytest.param(
            get_config("resnet50").replace(num_classes=7), marks=pytest.mark.exhaustive
        ),
    ],
    ids=["basic", "bottleneck", "resnet50"],
)
def test_haiku(tmp_path: Path, config: ResNetConfig):
    hk = pytest.importorskip("haiku")
    padding = dict.fromkeys(("stem_padding", "block_padding", "pool_padding"), "same")
    config = config.replace(**padding)
    path = written(tmp_path, config, "haiku", "weights.npz")
    trees: dict[str, dict[str, dict[str, Any]]] = {"params": {}, "state": {}}
    for entry, array in np.load(path).items():
        root, _, rest = entry.partition("/")
        module, _, leaf = rest.rpartition("/")
        trees[root].setdefault(module, {})[leaf] = jnp.asarray(np.float64(array))

    @hk.transform_with_state
    def net(x: jax.Array) -> jax.Array:
        deep = config.block == "bottleneck"
        if config.layers == (3, 4, 6, 3):
            model = hk.nets.ResNet50(7)
        else:
            model = hk.nets.ResNet(
                config.layers,
                7,
                bottleneck=deep,
                channels_per_group=[w * config.expansion for w in config.widths],
                use_projection=(deep, True, True, True),
            )
        return model(x, is_training=False)

    run = jax.jit(lambda x: net.apply(trees["params"], trees["state"], None, x)[0])
    proved(config, lambda x: run(nhwc(x)), stem_padding="torch")


# --- MLX ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.npz"])
def test_mlx_image(tmp_path: Path, name: str):
    mx = pytest.importorskip("mlx.core")
    mlxim = pytest.importorskip("mlxim.model")
    config = get_config("resnet18").replace(num_classes=7)
    path = written(tmp_path, config, "mlx", name)
    model = mlxim.create_model("resnet18", num_classes=7, weights=False)
    model.load_weights(str(path), strict=True)
    model.eval()

    def run(images: np.ndarray) -> np.ndarray:
        return np.array(model(mx.array(np.float32(nhwc(images)))))

    proved(config, run, within=1e-5)
