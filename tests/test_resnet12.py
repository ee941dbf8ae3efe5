"""ResNet-12 against the paper, layer by layer, and DropBlock by what it drops."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from multifsl.encoders.resnet12 import ResNet12, drop_blocks
from multifsl.errors import MultifslError


def test_it_is_the_network_of_the_paper() -> None:
    """Every layer by torch's own functions, in the paper's order; 12.4 million parameters; 16,000 numbers at 84 x 84."""
    torch.manual_seed(0)
    encoder: Any = ResNet12(pool=False).eval()
    assert encoder.dim == 16_000 and round(sum(p.numel() for p in encoder.parameters()) / 1e6, 1) == 12.4
    with torch.no_grad():
        for buffer in encoder.buffers():
            if buffer.ndim:
                buffer.uniform_(0.5, 1.5)
    x = torch.randint(0, 256, (2, 3, 84, 84), dtype=torch.uint8)
    z = x / 255
    for block in encoder.blocks:
        shortcut = block.shortcut_norm(F.conv2d(z, block.shortcut.weight))
        for k in range(3):
            z = block.norms[k](F.conv2d(z, block.convs[k].weight, padding=1))
            z = F.leaky_relu(z, 0.1) if k < 2 else z
        z = F.max_pool2d(F.leaky_relu(z + shortcut, 0.1), 2)
    assert_close(encoder(x), z.flatten(1), rtol=1e-4, atol=1e-5)
    encoder.pool = True
    assert_close(encoder(x), z.mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "size"), [(10, 5), (5, 5), (7, 2), (3, 5)])
def test_blocks_are_squares_of_about_the_share_that_is_asked_for(side: int, size: int) -> None:
    """Each zero lies in a whole square of zeros; the rest is scaled so that the sum stays; few squares overlap at 5 %."""
    torch.manual_seed(0)
    x = torch.ones(400, 20, side, side)
    out = drop_blocks(x, torch.tensor(0.05), size)
    size = min(size, side)
    zeros = (out == 0).float()
    whole = F.max_pool2d(1 - zeros, size, stride=1) == 0  # corners of squares without anything left
    covered = F.max_pool2d(F.pad(whole.float(), (size - 1,) * 4), size, stride=1)
    assert torch.equal(covered, zeros)
    assert float(zeros.mean()) == pytest.approx(0.05, rel=0.12)
    assert float(out.sum()) == pytest.approx(float(x.sum()), rel=1e-4)


def test_the_share_grows_with_the_batches_of_training() -> None:
    encoder = ResNet12(image_size=16)
    x = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    encoder.train()(x), encoder(x)
    encoder.eval()(x)
    assert float(encoder.batches) == 2
    again = ResNet12(image_size=16)
    again.load_state_dict(encoder.state_dict())
    assert float(again.batches) == 2
    features = torch.ones(8, 640, 1, 1)
    shares = []
    for batches in (0, 20_000, 40_000, 80_000):
        encoder.batches.fill_(batches)
        torch.manual_seed(0)
        shares.append(float((encoder._drop_blocks(features) == 0).float().mean()))
    np.testing.assert_allclose(shares, [0, 0.05, 0.1, 0.1], atol=0.012)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 8}, "image_size must be at least 16, not 8"),
        ({"channels": 4}, "resnet12 takes images of 1 or 3 channels, not 4"),
        ({"drop_rate": 1.0}, "drop_rate must be a number from 0 and below 1, not 1.0"),
        ({"block_size": 0}, "block_size must be a whole number from 1, not 0"),
        ({"pool": "mean"}, "pool must be True or False, not 'mean'"),
    ],
)
def test_bad_options_say_so(options: dict[str, object], message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        ResNet12(**options)  # type: ignore[arg-type]
