"""The structure of forty architectures of every kind of difficulty, and of models of our own that are harder still.

Each is built on the meta device, traced, and converted by two of the targets, others for each.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convswap
from benchmarks.census.catalogue import build_and_tell
from benchmarks.census.structure import structure_of
from convswap.conv_classes import CONVS
from convswap.targets import all_targets

pytestmark = pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")

IN_TRAINING = {"unreached": {"runs in training mode only": 2}}
IN_REGIONS = {"whole": False}

CHOSEN: dict[str, dict[str, Any]] = {
    # torchvision
    "torchvision:resnet18": {"sites": {"Conv2d": 20}},  # as plain as it gets
    "torchvision:regnet_y_400mf": {"whole": True},  # reads numbers while it is built, which meta tensors do not have
    "torchvision:googlenet": IN_TRAINING,  # heads that evaluation mode does not run
    "torchvision:quantized_resnet18": {"sites": {"Conv2d": 20}},  # quantisable, which is fused later
    "torchvision:squeezenet1_1": {"sites": {"Conv2d": 26}},  # its classifier is a convolution
    "torchvision:ssd300_vgg16": IN_REGIONS | {"sites": {"Conv2d": 35}},  # a list of images, a path by the data
    "torchvision:keypointrcnn_resnet50_fpn": IN_REGIONS  # a head behind what depends on the data
    | {
        "unreached": {"no pass could be run that would call it": 8},
        "others": {"ConvTranspose2d: transposed convolutions are not converted": 1},
    },
    "torchvision:lraspp_mobilenet_v3_large": {"sites": {"Conv2d": 66}},  # segmentation: a dict goes in between
    "torchvision:raft_small": IN_REGIONS | {"sites": {"Conv2d": 53}},  # two frames, and a loop
    "torchvision:r3d_18": {"sites": {"Conv3DSimple": 16, "Conv3d": 4}},  # video
    "torchvision:swin3d_t": {"sites": {"Conv3d": 1}},
    # timm: other classes of convolutions
    "timm:test_nfnet": {"sites": {"ScaledStdConv2d": 25, "Conv2d": 8}},  # standardised weights, in untraced modules
    "timm:dm_nfnet_f0": {"sites": {"ScaledStdConv2dSame": 57, "Conv2d": 24}},
    "timm:vit_small_r26_s32_224": {"sites": {"StdConv2dSame": 29, "Conv2d": 1}},
    "timm:resnetv2_50x1_bit": {"sites": {"StdConv2d": 53, "Conv2d": 1}},
    "timm:tf_mobilenetv3_small_minimal_100": {"sites": {"Conv2d": 30, "Conv2dSame": 5}},  # padded as TensorFlow does
    "timm:eca_botnext26ts_256": {"sites": {"Conv2d": 31, "Conv1d": 5}},  # over channels
    "timm:tf_efficientnet_cc_b0_4e": {  # kernels that are mixed for each sample already
        "sites": {"Conv2d": 53, "Conv2dSame": 4},
        "others": {"CondConv2d: its kernels are mixed for each sample already": 24},
    },
    "timm:lowformer_b0": {"others": {"ConvTranspose2d: transposed convolutions are not converted": 7}},
    "timm:resnetblur18": {  # blurs with a kernel that is no parameter
        "others": {
            "BlurPool2d: it calls torch.nn.functional.conv2d itself, and has no convolution module to replace": 4
        }
    },
    # timm: what cannot be traced through
    "timm:bat_resnext26ts": IN_REGIONS | {"regions": 33},
    "timm:mobilevit_xxs": IN_REGIONS | {"regions": 13},
    "timm:efficientvit_b0": IN_REGIONS | {"regions": 13},  # and caches tensors
    "timm:test_maxvit": {"whole": True},
    "timm:test_mambaout": {"sites": {"Conv2d": 11}},
    "timm:tiny_vit_5m_224": IN_REGIONS | {"regions": 11},
    "timm:vgg11": IN_REGIONS | {"regions": 3},
    "timm:levit_128s": {"whole": True},  # keeps attention biases between calls
    "timm:efficientformer_l1": {"whole": True},
    "timm:halonet26t": {"whole": True},
    "timm:coat_lite_tiny": {"sites": {"Conv2d": 20}},  # convolutions that several blocks share
    "timm:test_convnext": {"sites": {"Conv2d": 13}},
    "timm:twins_svt_small": {"sites": {"Conv2d": 15}},
    "timm:flexivit_small": {"sites": {"Conv2d": 1}},  # resamples its kernel as it is loaded
    "timm:samvit_base_patch16": {"sites": {"Conv2d": 3}},  # large images
    "timm:pit_ti_224": {"sites": {"Conv2d": 3}},
    # timm: many branches, or what stands in for others later
    "timm:repvgg_a0": {"whole": True},
    "timm:resnest14d": {"whole": True},
    "timm:dla46x_c": {"whole": True},
    "timm:naflexvit_base_patch16_gap": {"targets": {}},  # no convolution at all
}


def targets_for(index: int) -> list[str]:
    """Two targets, so that models that follow one another see all."""
    known = list(all_targets())
    return [known[(index + half * len(known) // 2) % len(known)] for half in range(2)]


def test_forty_are_chosen() -> None:
    assert len(CHOSEN) == 40
    assert {target for index in range(8) for target in targets_for(index)} == set(all_targets())


@pytest.mark.parametrize(("index", "name"), list(enumerate(CHOSEN)))
def test_structure(index: int, name: str) -> None:
    model, built = build_and_tell(name)
    assert all(tensor.is_meta for tensor in itertools.chain(model.parameters(), model.buffers()))
    assert (built is not None) == ("regnet_y" in name)
    _check(model, structure_of(model, targets_for(index)), CHOSEN[name])


def _check(model: nn.Module, record: dict[str, Any], expected: dict[str, Any]) -> None:
    convs = sum(isinstance(module, CONVS) for module in model.modules())
    assert sum(record.get("sites", {}).values()) == convs
    assert "missing" not in record
    for outcome in record["targets"].values():
        assert "error" not in outcome
        assert outcome["swapped"] + sum(outcome.get("kept", {}).values()) == convs
    assert {key: record.get(key) for key in expected} == expected
    if "unreached" not in expected:
        assert "unreached" not in record


@pytest.mark.parametrize("name", ["timm:test_nfnet", "timm:mobilevit_xxs", "timm:coat_lite_tiny"])
def test_structure_of_models_for_features(name: str) -> None:
    model, _ = build_and_tell(name, {"features_only": True})
    record = structure_of(model, ["dynamic", "padding_free"])
    _check(model, record, {"unknown_shapes": None})
    assert record["targets"]["dynamic"]["swapped"] > 15
    assert record["targets"]["padding_free"]["swapped"] > 5


class Spare(nn.Module):
    """One convolution called twice, under two names, and one that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.again = self.twice
        self.never = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.twice(self.first(x)))  # type: ignore[no-any-return]


def test_shared_and_uncalled_convolutions() -> None:
    model = Spare()
    model.default_cfg = {"input_size": (3, 16, 16)}  # type: ignore[assignment]
    record = structure_of(model, ["dcls", "partial"])
    assert record["unreached"] == {"neither a graph nor a pass, in either mode, leads to it": 1}
    assert record["targets"] == {"dcls": {"swapped": 3}, "partial": {"swapped": 3}}


class TestInputsThatLibrariesImply:
    def test_a_detection_model_gets_an_image(self) -> None:
        model, _ = build_and_tell("torchvision:ssd300_vgg16")
        found = convswap.trace(model)
        assert found.input_shape == (3, 320, 320)
        assert "depends on the data" in str(found.unknown_shapes)
        assert all(site.calls and site.ordered for site in found)
        site = found["backbone.features.0"]
        assert (site.batch, site.calls[0].input_shape) == (1, (1, 3, 300, 300))
        assert site.multiply_adds == 300 * 300 * 64 * 3 * 9

    def test_optical_flow_gets_two_frames(self) -> None:
        model, _ = build_and_tell("torchvision:raft_small")
        found = convswap.trace(model)
        assert found.unknown_shapes is None
        assert len(found["update_block.flow_head.conv1"].calls) == 12

    def test_parts_of_such_models_take_something_else(self) -> None:
        model, _ = build_and_tell("torchvision:ssd300_vgg16")
        assert convswap.trace(model.get_submodule("head")).input_shape is None

    def test_nothing_is_drawn_from_the_global_generator(self) -> None:
        from torchvision.models.optical_flow import raft_small

        model = raft_small(weights=None)
        state = torch.get_rng_state()
        convswap.trace(model)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("images", [1, 2])
def test_each_image_of_a_list_is_a_sample(images: int) -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, images: list[Tensor]) -> Tensor:
            return self.conv(torch.stack(images))  # type: ignore[no-any-return]

    (site,) = convswap.trace(Detector(), [torch.zeros(3, 8, 8)] * images)
    assert (site.batch, site.multiply_adds) == (images, 64 * 12)
