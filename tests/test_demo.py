from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

import convswap
from convswap.input_files import read_input
from examples import demo, samples


@pytest.mark.parametrize(
    ("photo", "category"),
    [("coffee", "espresso"), ("camera", "tripod"), ("motorcycle", "moped"), ("china", "palace")],
)
def test_real_weights_see_what_is_in_the_photos(photo: str, category: str) -> None:
    model = mobilenet_v2()
    model.load_state_dict(torch.load(samples.mobilenet_v2_checkpoint(), weights_only=True))
    new = convswap.convert(model, to="dynamic").eval()
    batch = read_input(model, samples.photo(photo))
    with torch.no_grad():
        expected, actual = model.eval()(batch), new(batch)
    assert MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"][int(actual.argmax())] == category
    assert (actual - expected).abs().max() <= 1e-4


def test_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert demo.main(tmp_path) == 0
    printed = capfd.readouterr().out
    assert "MobileNetV2: 51 of 52 convolutions converted (51 to dynamic)" in printed
    assert re.search(r"coffee\s+espresso .*espresso", printed)
    assert "the same classes" in printed
    assert "Traceback" not in printed
    assert {path.name for path in tmp_path.iterdir()} == {"mobilenet_v2-dynamic.safetensors", "report.html"}
