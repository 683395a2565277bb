"""The weights that timm publishes for its ``resnet`` and ``resnest`` modules.

A name is ``timm:ARCHITECTURE.TAG``; the tag is the recipe that trained it, and nearly
always tells how photographs are to be preprocessed. That is here as timm's own
``validate.py`` does it: at the size of the test, which is often above that of the
training. Source: timm 1.0.31, ``timm.get_pretrained_cfg``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Literal

from resnet_spec.config import ResNetConfig
from resnet_spec.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from resnet_spec.settings import shown
from resnet_spec.spelling import did_you_mean
from resnet_spec.variants import describe, get_config, list_models

PREFIX = "timm:"

_Kind = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class TimmWeights:
    """One checkpoint that timm publishes.

    Args:
        model: timm's name of the network.
        tag: of the weights, such as ``a1_in1k``.
    """

    model: str
    tag: str

    @property
    def name(self) -> str:
        """What it is called here, such as ``timm:resnet50.a1_in1k``."""
        return f"{PREFIX}{self.model}.{self.tag}"

    @property
    def repository(self) -> str:
        """Where it lies on the Hub."""
        return f"timm/{self.model}.{self.tag}"

    @property
    def num_classes(self) -> int:
        """How many classes it knows, of ImageNet-1K or 12K; 0 without a head."""
        if self.tag == "bamboo":
            return 0
        return 11821 if self.tag.endswith("in12k") else 1000

    @property
    def preprocessing(self) -> Preprocessing:
        """What was done to a photograph where timm measured it."""
        name = f"{self.model}.{self.tag}"
        side, share, interpolation = _OTHERWISE.get(name) or _OF_TAG[self.tag]
        half = self.tag in _HALVES
        return Preprocessing(
            resize=floor(side / share),
            crop=side,
            interpolation=interpolation,
            mean=(0.5, 0.5, 0.5) if half else IMAGENET_MEAN,
            std=(0.5, 0.5, 0.5) if half else IMAGENET_STD,
        )


# fmt: off
_TAGS: dict[str, str] = {
    "resnet10t": "c3_in1k",
    "resnet14t": "c3_in1k",
    "resnet18": "a1_in1k a2_in1k a3_in1k fb_ssl_yfcc100m_ft_in1k "
                "fb_swsl_ig1b_ft_in1k gluon_in1k tv_in1k",
    "resnet18d": "ra2_in1k ra4_e3600_r224_in1k",
    "resnet26": "bt_in1k",
    "resnet26d": "bt_in1k",
    "resnet26t": "ra2_in1k",
    "resnet34": "a1_in1k a2_in1k a3_in1k bt_in1k gluon_in1k ra4_e3600_r224_in1k "
                "tv_in1k",
    "resnet34d": "ra2_in1k",
    "resnet50": "a1_in1k a1h_in1k a2_in1k a3_in1k am_in1k b1k_in1k b2k_in1k bamboo "
                "bt_in1k c1_in1k c2_in1k d_in1k fb_ssl_yfcc100m_ft_in1k "
                "fb_swsl_ig1b_ft_in1k gluon_in1k ra_in1k ram_in1k tv2_in1k tv_in1k",
    "resnet50_gn": "a1h_in1k",
    "resnet50c": "gluon_in1k",
    "resnet50d": "a1_in1k a2_in1k a3_in1k gluon_in1k ra2_in1k ra4_e3600_r224_in1k",
    "resnet50s": "gluon_in1k",
    "resnet101": "a1_in1k a1h_in1k a2_in1k a3_in1k gluon_in1k tv2_in1k tv_in1k",
    "resnet101c": "gluon_in1k",
    "resnet101d": "gluon_in1k ra2_in1k",
    "resnet101s": "gluon_in1k",
    "resnet152": "a1_in1k a1h_in1k a2_in1k a3_in1k gluon_in1k tv2_in1k tv_in1k",
    "resnet152c": "gluon_in1k",
    "resnet152d": "gluon_in1k ra2_in1k",
    "resnet152s": "gluon_in1k",
    "resnet200d": "ra2_in1k",
    "resnext50_32x4d": "a1_in1k a1h_in1k a2_in1k a3_in1k fb_ssl_yfcc100m_ft_in1k "
                       "fb_swsl_ig1b_ft_in1k gluon_in1k ra_in1k tv2_in1k tv_in1k",
    "resnext50d_32x4d": "bt_in1k",
    "resnext101_32x4d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k",
    "resnext101_32x8d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k "
                        "fb_wsl_ig1b_ft_in1k tv2_in1k tv_in1k",
    "resnext101_32x16d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k "
                         "fb_wsl_ig1b_ft_in1k",
    "resnext101_32x32d": "fb_wsl_ig1b_ft_in1k",
    "resnext101_64x4d": "c1_in1k gluon_in1k tv_in1k",
    "wide_resnet50_2": "racm_in1k tv2_in1k tv_in1k",
    "wide_resnet101_2": "tv2_in1k tv_in1k",
    "resnetaa50": "a1h_in1k",
    "resnetaa50d": "d_in12k sw_in12k sw_in12k_ft_in1k",
    "resnetaa101d": "sw_in12k sw_in12k_ft_in1k",
    "resnetblur50": "bt_in1k",
    "senet154": "gluon_in1k",
    "seresnet50": "a1_in1k a2_in1k a3_in1k ra2_in1k",
    "seresnet152d": "ra2_in1k",
    "seresnext26d_32x4d": "bt_in1k",
    "seresnext26t_32x4d": "bt_in1k",
    "seresnext50_32x4d": "gluon_in1k racm_in1k",
    "seresnext101_32x4d": "gluon_in1k",
    "seresnext101_32x8d": "ah_in1k",
    "seresnext101_64x4d": "gluon_in1k",
    "seresnext101d_32x8d": "ah_in1k",
    "seresnextaa101d_32x8d": "ah_in1k sw_in12k sw_in12k_ft_in1k "
                             "sw_in12k_ft_in1k_288",
    "seresnextaa201d_32x8d": "sw_in12k sw_in12k_ft_in1k_384",
    "ecaresnet26t": "ra2_in1k",
    "ecaresnet50d": "miil_in1k",
    "ecaresnet50d_pruned": "miil_in1k",
    "ecaresnet50t": "a1_in1k a2_in1k a3_in1k ra2_in1k",
    "ecaresnet101d": "miil_in1k",
    "ecaresnet101d_pruned": "miil_in1k",
    "ecaresnet269d": "ra2_in1k",
    "ecaresnetlight": "miil_in1k",
    "resnetrs50": "tf_in1k",
    "resnetrs101": "tf_in1k",
    "resnetrs152": "tf_in1k",
    "resnetrs200": "tf_in1k",
    "resnetrs270": "tf_in1k",
    "resnetrs350": "tf_in1k",
    "resnetrs420": "tf_in1k",
    "resnest14d": "gluon_in1k",
    "resnest26d": "gluon_in1k",
    "resnest50d": "in1k",
    "resnest101e": "in1k",
    "resnest200e": "in1k",
    "resnest269e": "in1k",
    "resnest50d_4s2x40d": "in1k",
    "resnest50d_1s4x24d": "in1k",
    "test_resnet": "r160_in1k",
}
"""Every checkpoint, those of networks that are not here (yet) too."""

_RECIPES: tuple[tuple[int, float, _Kind, str], ...] = (
    (224, 0.875, "bilinear", "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k "
                             "fb_wsl_ig1b_ft_in1k tv_in1k"),
    (224, 0.965, "bilinear", "tv2_in1k"),
    (224, 0.875, "bicubic", "am_in1k gluon_in1k in1k"),
    (224, 0.95, "bicubic", "a3_in1k c3_in1k"),
    (224, 1.0, "bicubic", "bamboo"),
    (288, 0.95, "bicubic", "bt_in1k miil_in1k ra2_in1k ra_in1k racm_in1k ram_in1k"),
    (288, 1.0, "bicubic", "a1_in1k a1h_in1k a2_in1k ah_in1k b1k_in1k b2k_in1k "
                          "c1_in1k c2_in1k d_in1k d_in12k ra4_e3600_r224_in1k "
                          "sw_in12k sw_in12k_ft_in1k"),
    (320, 1.0, "bicubic", "sw_in12k_ft_in1k_288 tf_in1k"),
    (384, 1.0, "bicubic", "sw_in12k_ft_in1k_384"),
    (160, 0.95, "bilinear", "r160_in1k"),
)
"""Side of the square, its share of the short side, how that is resized; tags."""

_OTHERWISE: dict[str, tuple[int, float, _Kind]] = {
    "resnet26t.ra2_in1k": (320, 1.0, "bicubic"),
    "resnet50.a1h_in1k": (224, 1.0, "bicubic"),
    "resnet50_gn.a1h_in1k": (288, 0.95, "bicubic"),
    "resnet101d.ra2_in1k": (320, 1.0, "bicubic"),
    "resnet152d.ra2_in1k": (320, 1.0, "bicubic"),
    "resnet200d.ra2_in1k": (320, 1.0, "bicubic"),
    "seresnet152d.ra2_in1k": (320, 1.0, "bicubic"),
    "seresnextaa201d_32x8d.sw_in12k": (384, 1.0, "bicubic"),
    "ecaresnet26t.ra2_in1k": (320, 0.95, "bicubic"),
    "ecaresnet50t.ra2_in1k": (320, 0.95, "bicubic"),
    "ecaresnet269d.ra2_in1k": (352, 1.0, "bicubic"),
    "resnest14d.gluon_in1k": (224, 0.875, "bilinear"),
    "resnest26d.gluon_in1k": (224, 0.875, "bilinear"),
    "resnest50d.in1k": (224, 0.875, "bilinear"),
    "resnest101e.in1k": (256, 0.875, "bilinear"),
    "resnest200e.in1k": (320, 0.909, "bicubic"),
    "resnest269e.in1k": (416, 0.928, "bicubic"),
    "resnetrs50.tf_in1k": (224, 0.91, "bicubic"),
    "resnetrs101.tf_in1k": (288, 0.94, "bicubic"),
    "resnetrs270.tf_in1k": (352, 1.0, "bicubic"),
    "resnetrs350.tf_in1k": (384, 1.0, "bicubic"),
    "resnetrs420.tf_in1k": (416, 1.0, "bicubic"),
}
"""Where a network has another size than others with its tag."""
# fmt: on

_OF_TAG: dict[str, tuple[int, float, _Kind]] = {
    tag: (side, share, kind)
    for side, share, kind, tags in _RECIPES
    for tag in tags.split()
}

_HALVES = ("ra4_e3600_r224_in1k", "r160_in1k")
"""Tags whose mean and std are 0.5, not ImageNet's."""

_NOT_TIMMS = ("cifar_*", "plain*", "resnet18_1d", "*_v1", "*_conv_head")
"""Networks here that timm has not."""


def is_timm(name: str) -> bool:
    """Whether this is how weights of timm's are named, and not a file or a word."""
    return name.startswith(PREFIX)


def list_timm_weights(model: str) -> list[str]:
    """Returns the names of the weights that timm publishes for a network."""
    return [f"{PREFIX}{model}.{tag}" for tag in _TAGS.get(model, "").split()]


def get_timm_weights(name: str, model: str | ResNetConfig | None = None) -> TimmWeights:
    """Returns the weights that timm publishes under a name.

    Args:
        name: such as ``"timm:resnet50.a1_in1k"``.
        model: the network that they must be for, or its configuration, whatever its
            classes and channels.

    Raises:
        ValueError: there are none of this name, or for another network.
    """
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    if tag not in _TAGS.get(architecture, "").split():
        known = [one for every in _TAGS for one in list_timm_weights(every)]
        mine = ", ".join(_TAGS.get(architecture, "").split())
        raise ValueError(
            f"timm publishes no weights {shown(name)};{did_you_mean(name, known, {})} "
            + (
                f"the tags of {architecture} are {mine}"
                if mine
                else "`resnet-twins list` has those of the networks here"
            )
        )
    if architecture not in list_models():
        raise ValueError(
            f"{name} is for {architecture}, which is none of the networks here; "
            "`resnet-twins list` has those that are"
        )
    found = get_config(architecture)
    if model is not None:
        config = get_config(model) if isinstance(model, str) else model
        if found.with_ends_of(config).as_function() != config.as_function():
            raise ValueError(
                f"{name} is for {describe(found)}, not {describe(config)}; make that "
                "network, or take others of `resnet-twins list`"
            )
    return TimmWeights(model=architecture, tag=tag)


def timm_name(config: ResNetConfig) -> str | None:
    """Returns what timm calls a network, whatever its classes and channels."""
    for name in list_models(exclude=_NOT_TIMMS):
        if get_config(name).with_ends_of(config).as_function() == config.as_function():
            return name
    return None
