from __future__ import annotations

import functools
import itertools
import math
import re
from pathlib import Path

import pytest
import torch

import convswap
from convswap.layers import DynamicConv2d
from examples import digits, finetune_digits
from examples.digits import PER_CLASS, Digits, distorted, parts_of, read_digits
from examples.finetune_digits import KERNELS, DigitNet, accuracy, train

LAYERS = ["conv2", "conv3", "conv4"]


@pytest.fixture(scope="module")
def all_digits() -> Digits:
    return read_digits()


@pytest.fixture(scope="module")
def few(all_digits: Digits) -> Digits:
    """Of every class 40."""
    rows = torch.arange(5000).reshape(10, 500)[:, :40].flatten()
    return Digits(all_digits.images[rows], all_digits.labels[rows])


def test_the_digits_are_what_they_should_be(all_digits: Digits) -> None:
    images, labels = all_digits
    assert images.shape == (5000, 1, 28, 28)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.bincount().tolist() == [500] * 10
    assert len(images.flatten(1).unique(dim=0)) == 5000
    # Drawn in white on black, in the middle: ones have the least ink, and zeros are hollow.
    ink = torch.stack([images[labels == label].mean(0)[0] for label in range(10)])
    assert ink.mean((1, 2)).argmin() == 1
    assert ink[:, 13:15, 13:15].mean((1, 2)).argmin() == 0
    assert ink[:, :2].max() < 0.05


def test_parts_share_no_digit(all_digits: Digits) -> None:
    rows = torch.arange(5000.0).reshape(-1, 1, 1, 1)
    parts = parts_of(Digits(rows, all_digits.labels))
    assert list(parts) == list(PER_CLASS)
    for part, (numbers, labels) in parts.items():
        assert labels.bincount().tolist() == [PER_CLASS[part]] * 10
        assert torch.equal(all_digits.labels[numbers.flatten().long()], labels)
    together = torch.cat([part.images for part in parts.values()])
    assert torch.equal(together.sort(0).values, rows)
    again, other = (parts_of(Digits(rows, all_digits.labels), seed)["test"].images for seed in (0, 1))
    assert torch.equal(again, parts["test"].images)
    assert not torch.equal(other, again)


@pytest.mark.parametrize("fault", ["a row less", "other labels", "a column less"])
def test_another_file_is_refused(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [str(row // 500) for row in range(5000)]
    lines = {
        "a row less": ["0," * 784 + label for label in labels[1:]],
        "other labels": ["0," * 784 + label for label in reversed(labels)],
        "a column less": ["0," * 783 + label for label in labels],
    }[fault]
    path = tmp_path / "digits.csv"
    path.write_text("\n".join(lines))
    monkeypatch.setattr(digits, "digits", lambda: path)
    with pytest.raises(SystemExit, match="is not the file it should be"):
        read_digits()


def test_distortions_keep_the_digits_in_sight(few: Digits) -> None:
    first, second = (distorted(few.images, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == few.images.shape
    assert (first - few.images).abs().mean() > 0.02
    ink = first.sum((1, 2, 3)) / few.images.sum((1, 2, 3))
    assert (ink > 0.5).all()
    assert (ink < 2).all()


def test_losses_fall_and_nets_see_the_same_batches(few: Digits) -> None:
    torch.manual_seed(0)
    net = DigitNet()
    dynamic = convswap.convert(net, to="dynamic", example_inputs=few.images[:2])
    assert [name for name, module in dynamic.named_modules() if isinstance(module, DynamicConv2d)] == LAYERS
    untrained = accuracy(net, few)
    seen: dict[str, list[torch.Tensor]] = {}
    losses = {}
    for name, each in (("unconverted", net), ("dynamic", dynamic)):
        each.register_forward_pre_hook(functools.partial(_note_training, seen.setdefault(name, [])))
        epochs: list[int] = []
        losses[name] = train(each, few, 4, 1e-2, 20, seed=3, after_epoch=epochs.append)
        assert epochs == [1, 2, 3, 4]
        assert losses[name][-1] < 0.85 * losses[name][0]
        assert accuracy(each, few) > untrained + 20
    assert len(seen["dynamic"]) == 4 * 20
    assert all(torch.equal(a, b) for a, b in zip(seen["unconverted"], seen["dynamic"], strict=True))
    assert losses["dynamic"] != losses["unconverted"]


def _note_training(seen: list[torch.Tensor], net: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
    if net.training:
        seen.append(inputs[0])


def test_a_tiny_run(few: Digits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(finetune_digits, "parts_of", lambda _: {"training": few, "validation": few, "test": few})
    temperatures: list[list[float]] = []

    class Watched(convswap.TemperatureSchedule):
        def step(self) -> None:
            super().step()
            layers = [module for module in self.model.modules() if isinstance(module, DynamicConv2d)]
            temperatures[-1:] = [[*temperatures[-1], layers[0].attention.temperature.item()]]
            assert len({layer.attention.temperature.item() for layer in layers}) == 1

        def __init__(self, *args: object, **options: object) -> None:
            temperatures.append([])
            super().__init__(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(convswap, "TemperatureSchedule", Watched)
    options = ["--seeds", "2", "--before", "3", "--epochs", "4", "--batch", "20"]
    outcomes = finetune_digits.main(options)
    printed = " ".join(capsys.readouterr().out.split())  # terminals wrap
    for first, *between, last in temperatures:  # one for each epoch, and one more when the last is over
        assert (first, last) == (30, 1)
        assert len(between) == 3
        assert all(before >= after for before, after in itertools.pairwise([first, *between, last]))
    assert len(temperatures) == len(outcomes) == 2
    for seed, outcome in enumerate(outcomes):
        assert outcome.unconverted > outcome.trained > 20
        assert outcome.dynamic > outcome.trained
        assert re.search(rf"seed {seed}: .*fine-tuned {outcome.unconverted:.1f} % .* {outcome.dynamic:.1f} %", printed)
        assert list(outcome.entropies) == ["converted, T = 30", "after 2 epochs, T = 20.3", "after 4 epochs, T = 1"]
        before, _, after = outcome.entropies.values()
        assert list(before) == list(after) == LAYERS
        for layer in LAYERS:
            assert before[layer] == pytest.approx(math.log(KERNELS), abs=1e-6)
            assert before[layer] > after[layer] > 0
    mean = sum(outcome.dynamic for outcome in outcomes) / 2
    assert re.search(rf"4 more, dynamic +{mean:.2f} ± ", printed)
    assert re.search(r"dynamic − unconverted +-?[\d.]+ ± ", printed)
    assert re.search(r"conv4 +1\.386 ± 0\.000 +\d\.\d+ ± ", printed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "argument --epochs: must be a whole number of at least 1, got 0"),
        (["--seeds", "-1"], "argument --seeds: must be a whole number of at least 1, got -1"),
        (["--batch", "many"], "argument --batch: must be a whole number of at least 1, got many"),
        (["--learning-rate", "0"], "argument --learning-rate: must be a number above 0, got 0"),
        (["--part", "all"], "argument --part: invalid choice: 'all'"),
        (["--kernel", "4"], "unrecognized arguments: --kernel 4"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        finetune_digits.main(options)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
