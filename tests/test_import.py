from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_brings_in_no_library_of_models_and_no_renderer() -> None:
    heavy = {"torchvision", "timm", "rich", "jinja2", "safetensors"}
    assert run(f"import convswap, sys; print(*({heavy} & set(sys.modules)))").split() == []


def test_layers_need_nothing_of_the_rest() -> None:
    code = """
import sys
from importlib.util import find_spec
from pathlib import Path
sys.path.insert(0, str(Path(find_spec("convswap").origin).resolve().parents[1]))
import layers
print(*(name for name in sys.modules if name.startswith("convswap")))
"""
    assert run(code).split() == []
