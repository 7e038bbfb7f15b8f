"""The census: what becomes of every model of torchvision and timm (``python -m benchmarks.census``)."""
