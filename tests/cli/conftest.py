from __future__ import annotations

from pathlib import Path

import pytest
import torch

import convswap
from convswap.cli import main

from ..models import TwoConvs, as_if_trained
from .helpers import NET, Cli, Outcome


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # how argparse ends
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Outcome(code, out, err)

    return run


@pytest.fixture
def net() -> TwoConvs:
    """A model with the statistics of a trained one."""
    model = as_if_trained(TwoConvs())
    assert isinstance(model, TwoConvs)
    return model.eval()


@pytest.fixture
def checkpoint(tmp_path: Path, net: TwoConvs) -> Path:
    """Its state dict in a file."""
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def converted(tmp_path: Path, cli: Cli, checkpoint: Path) -> Path:
    """A converted file of the same model."""
    path = tmp_path / "converted.safetensors"
    outcome = cli(*("convert", checkpoint, "--model", NET, "--to", "dynamic", "--out", path, "--input-size", 3, 16, 16))
    assert outcome.code == 0, outcome
    return path


@pytest.fixture
def dynamic(tmp_path: Path, net: TwoConvs) -> Path:
    """A converted file whose attention depends on the input."""
    model = convswap.convert(net, "dynamic", "conv2")
    with torch.no_grad():
        for parameter in convswap.new_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape))
    convswap.save(model, tmp_path / "dynamic.safetensors", NET)
    return tmp_path / "dynamic.safetensors"
