"""What every encoder promises, over every file in `encoders/`."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

from multifsl import registry
from multifsl.bank import pad_together
from multifsl.encoder import Encoder
from multifsl.episode import Inputs, first_leaf, lengths, map_inputs, size
from multifsl.errors import BadItem
from tests import tiny_audio
from tests.needs import needs_efficientnet_lite0, needs_ge2e, needs_minilm
from tests.tiny import here

SMALL = {
    "audio": [
        f"audio(model='tiny_audio:{kind}')"
        for kind in ("WavLMForXVector", "HubertModel", "SEWModel", "WhisperForConditionalGeneration", "ASTModel")
    ],
    "conv4": ["conv4(width=8)", "conv4(width=8, norm='group', channels=1, image_size=40)"],
    "conv4_mel": ["conv4_mel(width=8)", "conv4_mel(width=4, n_mels=40)"],
    "ecapa": ["ecapa(channels=16, dim=12)"],
    "resnet_mel": ["resnet_mel(channels=4, dim=12, blocks=(1, 2, 1, 1))"],
    "efficientnet_lite0": ["efficientnet_lite0(image_size=64)"],
    "resnet12": ["resnet12(image_size=32)", "resnet12(image_size=40, pool=False, channels=1)"],
    "transformer": ["transformer"],
    "vision": [f"vision(model='tiny:{kind}')" for kind in ("dinov2", "clip", "resnet")]
    + ["vision(model='tiny:vit', lora=2)"],
}
NEEDS = {
    "efficientnet_lite0": needs_efficientnet_lite0,
    "ge2e": needs_ge2e,
    "transformer": needs_minilm,
}  # what skips where an encoder's weights are not there
SPECS = [spec for name in registry.names("encoders") for spec in SMALL.get(name, [name])]
every = pytest.mark.parametrize("spec", SPECS)


def build(spec: str) -> Encoder:
    NEEDS.get(spec.partition("(")[0], lambda: None)()
    torch.manual_seed(0)
    encoder: Encoder = registry.build("encoders", tiny_audio.here(here(spec)))
    return encoder.eval()


def items(encoder: Encoder, count: int = 5) -> list[Any]:
    """Items of different sizes."""
    rng = np.random.default_rng(0)
    if encoder.modality == "image":
        return [Image.fromarray(rng.integers(0, 256, (30 + 9 * i, 50, 3)).astype(np.uint8)) for i in range(count)]
    if encoder.modality == "speech":
        return [(rng.normal(size=4000 + 1700 * i) * 0.1, 16000) for i in range(count)]
    return [
        "a word",
        "two more words",
        "and then a somewhat longer sentence, with a comma",
        "short",
        "the last one of five",
    ][:count]


@every
def test_embeddings_have_the_width_that_is_said(spec: str) -> None:
    encoder = build(spec)
    x = encoder.preprocess(items(encoder))
    assert size(x) == 5 and first_leaf(x).device.type == "cpu"
    with torch.no_grad():
        z = encoder(x)
    assert z.shape == (5, encoder.dim) and z.dtype == torch.float32
    assert torch.isfinite(z).all() and float(z.std(0).mean()) > 0
    assert encoder.embed(x).shape == (5, encoder.dim)
    assert encoder.embed(map_inputs(lambda leaf: leaf[:0], x)).shape == (0, encoder.dim)


@every
def test_one_item_is_embedded_as_among_many(spec: str) -> None:
    encoder = build(spec)
    chosen = items(encoder)
    together = encoder.embed(encoder.preprocess(chosen), batch_size=2)
    for i, item in enumerate(chosen):
        assert_close(encoder.embed(encoder.preprocess([item]))[0], together[i], rtol=1e-4, atol=1e-5)


@every
def test_longer_padding_is_the_same_embedding(spec: str) -> None:
    encoder = build(spec)
    x = encoder.preprocess(items(encoder))
    if lengths(x) is None:
        return

    def pad(leaf: torch.Tensor) -> torch.Tensor:
        return F.pad(leaf, (0, 37)) if leaf.ndim > 1 else leaf

    with torch.no_grad():
        assert_close(encoder(map_inputs(pad, x)), encoder(x), rtol=1e-5, atol=1e-5)


@every
def test_blocks_join(spec: str) -> None:
    encoder = build(spec)
    chosen = items(encoder)
    joined = pad_together([encoder.preprocess(chosen[:2]), encoder.preprocess(chosen[2:])])
    assert _same(joined, encoder.preprocess(chosen))


def _same(a: Inputs, b: Inputs) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    assert isinstance(a, dict) and isinstance(b, dict)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@every
def test_arguments_are_attributes_and_name_the_same_encoder(spec: str) -> None:
    encoder = build(spec)
    assert all(hasattr(encoder, name) for name in inspect.signature(type(encoder)).parameters)
    again = build(registry.resolved(encoder))
    assert registry.resolved(again) == registry.resolved(encoder)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    assert encoder.modality in ("image", "speech", "text")


@every
@pytest.mark.parametrize("nonsense", [None, 3.5, object(), "/no/such/file.xyz", ""])
def test_what_is_no_item_is_named(spec: str, nonsense: Any) -> None:
    encoder = build(spec)
    if encoder.modality == "text" and nonsense == "/no/such/file.xyz":
        return  # a text like any other
    with pytest.raises(BadItem, match=r"\w+"):
        encoder.preprocess([nonsense])


@every
def test_training_mode_is_left_as_it_was(spec: str) -> None:
    encoder = build(spec).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder.embed(encoder.preprocess(items(encoder)))
    assert encoder.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())  # running statistics too


@every
def test_bfloat16(spec: str) -> None:
    encoder = build(spec)
    x = encoder.preprocess(items(encoder))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(x).float()
    with torch.no_grad():
        exact = encoder(x)
    assert float(F.cosine_similarity(rounded, exact).min()) > 0.99


def test_conv4_is_the_network_of_the_papers() -> None:
    """Four blocks of convolution, batch norm, ReLU, max-pool in that order, by torch's own layers; 111,936 parameters."""
    encoder = build("conv4(channels=1)")
    assert sum(p.numel() for p in encoder.parameters()) == 111_936  # 640 + 3 * 36,928 + 4 * 128
    x = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    z = x / 255
    for conv, norm in zip(encoder.convs, encoder.norms, strict=True):  # type: ignore[arg-type]
        z = F.max_pool2d(F.relu(norm(conv(z))), 2)
    assert_close(encoder(x), z.flatten(1), rtol=1e-5, atol=1e-6)


def test_conv4_reads_what_people_have(tmp_path: Any) -> None:
    """Orientation, transparency, depth and shape: by what the middle of the picture must be."""
    encoder = build("conv4(channels=1, image_size=16)")
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((20, 20), 32768, dtype=np.uint16)).save(deep)
    assert abs(int(encoder.load(deep)[8, 8, 0]) - 128) <= 1
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    assert int(encoder.load(clear)[8, 8, 0]) == 255  # transparent is white, not black
    wide = np.zeros((16, 48), dtype=np.uint8)
    wide[:, 16:32] = 200
    assert (encoder.load(wide) == 200).all()  # the centre, not squeezed
    turned = Image.fromarray(np.vstack([np.zeros((8, 16)), np.full((8, 16), 255)]).astype(np.uint8))
    turned.save(tmp_path / "turned.jpg", exif=_rotated_180(), quality=95)
    assert encoder.load(tmp_path / "turned.jpg")[2].mean() > 200
    assert (encoder.load(np.full((3, 16, 16), 0.5)) == 128).all()
    for wrong in (
        np.zeros((5, 5, 7)),
        np.full((4, 4), np.nan),
        np.full((4, 4), 3.0),
        np.zeros((0, 4)),
        np.zeros((4, 4), dtype=np.int64),
    ):
        with pytest.raises(BadItem):
            encoder.load(wrong)


def _rotated_180() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif
