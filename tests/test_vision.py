"""Image encoders of the hub. Oracles: the same model called by hand, on what its own image processor makes of the images."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from multifsl.encoder import no_downloads
from multifsl.encoders import _lora
from multifsl.encoders._hub import find_model
from multifsl.encoders._image import scaling
from multifsl.encoders.vision import Vision
from multifsl.episode import Batch, Episode
from multifsl.errors import BadFile, BadItem, DataNotFound, MultifslError
from multifsl.registry import build, resolved
from tests.examples import run_examples
from tests.tiny import SIDE, VISION, tiny_vision

hf = pytest.importorskip("transformers")
every_kind = pytest.mark.parametrize("kind", list(VISION))
OWN = {"dinov2": "cls", "vit": "cls", "deit": "cls"}  # of the others it is "pooler"


def images(count: int = 4) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (30 + 9 * i, 50, 3), dtype=np.uint8)) for i in range(count)]


@pytest.fixture(scope="module")
def dino() -> Vision:
    return Vision(str(tiny_vision("dinov2")))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A model's folder to do harm to."""
    return Path(shutil.copytree(tiny_vision("vit"), tmp_path / "copy"))


def by_hand(kind: str, pictures: list[Image.Image]) -> tuple[Any, torch.Tensor]:
    """The output of the network, read as its own class, of each image alone; and what the processor made of the images."""
    folder = tiny_vision(kind)
    whole = type(VISION[kind](hf)[0]).from_pretrained(folder).eval()
    network = whole.vision_model if kind in ("clip", "siglip") else whole
    processor = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = torch.cat([processor(images=picture, return_tensors="pt")["pixel_values"] for picture in pictures])
    with torch.no_grad():
        return [network(pixel_values=row[None]) for row in pixels], pixels


def joined(outputs: Any, pooled: Callable[[Any], torch.Tensor]) -> torch.Tensor:
    return torch.cat([pooled(output) for output in outputs])


# ---- embeddings ----


@every_kind
def test_embeddings_equal_the_model_called_by_hand(kind: str) -> None:
    encoder = Vision(str(tiny_vision(kind)))
    outputs, pixels = by_hand(kind, images())
    x = encoder.preprocess(images())
    assert isinstance(x, torch.Tensor)
    assert x.dtype == torch.uint8 and x.shape == pixels.shape
    assert_close(x * encoder.scale + encoder.shift, pixels, rtol=0, atol=1e-5)
    assert encoder.pooling == OWN.get(kind, "pooler")
    if encoder.pooling == "cls":
        expected = joined(outputs, lambda out: out.last_hidden_state[:, 0])
    else:
        expected = joined(outputs, lambda out: out.pooler_output.flatten(1))
    assert_close(encoder(x).detach(), expected, rtol=0, atol=1e-4)
    assert_close(encoder.embed(x, batch_size=3), expected, rtol=0, atol=1e-4)
    assert encoder.dim == expected.shape[1] and encoder.published
    assert not any(module.training for module in encoder.modules())


@pytest.mark.parametrize(("kind", "front"), [("dinov2", 1), ("clip", 1), ("siglip", 0), ("swin", 0), ("deit", 2)])
def test_mean_is_over_the_patches(kind: str, front: int) -> None:
    """Of DINOv2's 17 tokens 16 are patches; SigLIP has no class token, DeiT a second one, for its teacher."""
    encoder = Vision(str(tiny_vision(kind)), pooling="mean")
    outputs, _ = by_hand(kind, images())
    expected = joined(outputs, lambda out: sum(out.last_hidden_state[:, i] for i in range(front, out[0].shape[1])))
    expected = expected / (outputs[0].last_hidden_state.shape[1] - front)
    assert_close(encoder.embed(encoder.preprocess(images())), expected, rtol=0, atol=1e-4)


def test_mean_of_a_convolutional_network() -> None:
    encoder = Vision(str(tiny_vision("convnext")), pooling="mean")
    outputs, _ = by_hand("convnext", images())
    expected = joined(outputs, lambda out: out.last_hidden_state.sum((2, 3)) / out.last_hidden_state[0, 0].numel())
    assert_close(encoder.embed(encoder.preprocess(images())), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["siglip", "convnext", "resnet", "swin"])
def test_no_class_token(kind: str) -> None:
    with pytest.raises(MultifslError, match="pooling='cls' takes the class token, but .* has none; use 'mean'"):
        Vision(str(tiny_vision(kind)), pooling="cls")


def test_a_pooler_that_nobody_published(copy: Path) -> None:
    """As in the checkpoints of classifiers: the class token does without, and what is asked for is not made up."""
    hf.ViTModel.from_pretrained(copy, add_pooling_layer=False).save_pretrained(copy)
    assert Vision(str(copy)).pooling == "cls"
    with pytest.raises(MultifslError, match="pooling='pooler': .* has none, or its weights are not published"):
        Vision(str(copy), pooling="pooler")


def test_of_clip_only_the_image_tower_is_kept() -> None:
    encoder = Vision(str(tiny_vision("clip")))
    tower = VISION["clip"](hf)[0].vision_model
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in tower.parameters())


def test_a_classifier_s_checkpoint_is_its_backbone(tmp_path: Path) -> None:
    """Keys with a prefix, and a head that is left out."""
    folder = tiny_vision("resnet")
    config = hf.AutoConfig.from_pretrained(folder, num_labels=3)
    classifier = hf.ResNetForImageClassification(config)
    classifier.resnet.load_state_dict(hf.ResNetModel.from_pretrained(folder).state_dict())
    classifier.save_pretrained(tmp_path / "classifier")
    shutil.copy(folder / "preprocessor_config.json", tmp_path / "classifier")
    ours, theirs = Vision(str(tmp_path / "classifier")), Vision(str(folder))
    x = theirs.preprocess(images())
    assert_close(ours.embed(x), theirs.embed(x), rtol=0, atol=0)


@every_kind
@pytest.mark.parametrize("pooling", [None, "mean"])
def test_every_parameter_gets_a_gradient(
    kind: str, pooling: Any
) -> None:  # DistributedDataParallel would wait for others
    encoder = Vision(str(tiny_vision(kind)), pooling=pooling)
    x = encoder.preprocess(images())
    named = dict(encoder.named_parameters())
    weights = torch.randn(encoder.dim, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((encoder(x) @ weights).square().sum(), list(named.values()))
    without = {name for name, g in zip(named, found, strict=True) if float(g.abs().max()) == 0}
    assert not without
    assert not any("mask_token" in name for name in encoder.state_dict())


def test_devices(dino: Vision) -> None:
    """On the meta device a tensor made on the CPU, or a look at a value, raises; it stands for an accelerator."""
    there = deepcopy(dino).to("meta")
    x = dino.preprocess(images())
    assert isinstance(x, torch.Tensor)
    z = there(x.to("meta"))
    assert z.device.type == "meta" and z.shape == (4, 16)
    z.sum().backward()


def test_half_precision(dino: Vision) -> None:
    x = dino.preprocess(images())
    rounded = deepcopy(dino).to(torch.bfloat16)(x).float()
    assert float(torch.nn.functional.cosine_similarity(rounded, dino(x)).min().detach()) > 0.99


def test_weights_in_half_precision_are_used_in_float32(copy: Path) -> None:
    hf.ViTModel.from_pretrained(copy, dtype=torch.bfloat16).save_pretrained(copy)
    assert {p.dtype for p in Vision(str(copy)).parameters()} == {torch.float32}


def test_the_spec_names_every_argument(dino: Vision) -> None:
    spec = f"vision(model='{tiny_vision('dinov2')}', pooling='cls', revision=None, lora=None)"
    assert resolved(dino) == spec
    x = dino.preprocess(images())
    assert_close(build("encoders", spec).embed(x), dino.embed(x), atol=0, rtol=0)


# ---- items ----


def test_every_form_of_an_image_is_the_same_image(dino: Vision, tmp_path: Path) -> None:
    picture = images(1)[0]
    picture.save(tmp_path / "image.png")
    array = np.asarray(picture)
    for item in (tmp_path / "image.png", array, array.transpose(2, 0, 1), array / 255):
        np.testing.assert_array_equal(dino.load(item), dino.load(picture))
    grey = Image.fromarray(array[:, :, 0])
    assert (dino.load(grey) == dino.load(grey)[:1]).all()
    with pytest.raises(BadItem, match="no image file"):
        dino.load(tmp_path / "none.png")


# ---- files that will not do ----


def test_wrong_arguments() -> None:
    with pytest.raises(MultifslError, match="no pooling 'max'; known: 'cls', 'mean', 'pooler'"):
        Vision(str(tiny_vision("vit")), pooling="max")  # type: ignore[arg-type]
    with pytest.raises(MultifslError, match="model must be a folder or a name on the hub, not ''"):
        Vision("")


def test_damaged_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    data = weights.read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"no weights at all" * 9):
        weights.write_bytes(damaged)
        with pytest.raises(BadFile, match=f"cannot read the image model {copy}: "):
            Vision(str(copy))


def test_weights_that_are_not_finite(copy: Path) -> None:
    network = hf.ViTModel.from_pretrained(copy)
    network.layernorm.bias.data[0] = float("nan")
    network.save_pretrained(copy)
    with pytest.raises(BadFile, match="are damaged: an image's embedding is not finite"):
        Vision(str(copy))


def test_weights_of_another_network(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(BadFile, match=r"are not those of its config.json: \d+ tensors of a ViTModel are missing or"):
        Vision(str(copy))


def test_a_folder_without_preprocessing(copy: Path) -> None:
    with pytest.raises(BadFile, match="is a file; an image model is a folder"):
        Vision(str(copy / "preprocessor_config.json"))
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(BadFile, match="is not a Hugging Face image model: it has no preprocessor_config.json"):
        Vision(str(copy))


def test_damaged_preprocessing(copy: Path) -> None:
    file = copy / "preprocessor_config.json"
    config = json.loads(file.read_text())
    file.write_text("{")
    with pytest.raises(BadFile, match="cannot read the image model"):
        Vision(str(copy))
    file.write_text(json.dumps({**config, "image_mean": [0.5, 0.5]}))
    with pytest.raises(BadFile, match="the preprocessing of .* cannot be used: ValueError: mean must have 3 elements"):
        Vision(str(copy))
    file.write_text(json.dumps({**config, "size": {"height": 64, "width": 64}}))  # the network was made for 32
    with pytest.raises(BadFile, match="cannot be used as an image encoder: Input image size"):
        Vision(str(copy))


def test_preprocessing_that_keeps_the_shape_of_an_image(copy: Path) -> None:
    file = copy / "preprocessor_config.json"
    config = json.loads(file.read_text()) | {"image_processor_type": "BitImageProcessor", "do_center_crop": False}
    file.write_text(json.dumps(config | {"size": {"shortest_edge": 32}}))
    with pytest.raises(MultifslError, match="BitImageProcessorPil, does not bring every image to one size"):
        Vision(str(copy))


@pytest.mark.parametrize(
    "steps",
    [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5, "do_normalize": False}],
)
def test_scaling_equals_the_processor_s(steps: dict[str, Any]) -> None:
    processor = hf.ViTImageProcessorPil(size={"height": 20, "width": 20}, image_std=[0.2, 0.3, 0.4], **steps)
    scale, shift = scaling(processor, "x")
    picture = images(1)[0].resize((20, 20))
    expected = processor(images=picture, return_tensors="pt")["pixel_values"][0].float()
    pixels = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())
    assert_close(pixels * scale + shift, expected, rtol=1e-5, atol=1e-5)


def test_other_kinds_of_models_are_refused(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    }  # fmt: skip
    video = hf.VideoMAEConfig(**sizes, image_size=16, patch_size=8, num_frames=2)
    for name, network in {
        "text": hf.BertModel(hf.BertConfig(**sizes, vocab_size=8)),
        "video": hf.VideoMAEModel(video),
        "video2": hf.TimesformerModel(hf.TimesformerConfig(**sizes, image_size=16, patch_size=8, num_frames=2)),
    }.items():
        network.save_pretrained(tmp_path / name)
        shutil.copy(tiny_vision("vit") / "preprocessor_config.json", tmp_path / name)
        with pytest.raises(BadFile, match=f"is no image encoder but a {type(network).__name__}"):
            Vision(str(tmp_path / name))


def test_a_model_that_hides_patches_at_random_is_refused(tmp_path: Path) -> None:
    config = hf.ViTMAEConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    hf.ViTMAEModel(config).save_pretrained(tmp_path)
    shutil.copy(tiny_vision("vit") / "preprocessor_config.json", tmp_path)
    with pytest.raises(MultifslError, match="it makes of one image now this, now that"):
        Vision(str(tmp_path))


def test_siglip2_of_native_shapes_is_refused(tmp_path: Path) -> None:
    """NaFlex takes patches, as many as an image's shape gives."""
    config = hf.Siglip2VisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_patches=16, patch_size=8,
    )  # fmt: skip
    hf.Siglip2VisionModel(config).save_pretrained(tmp_path)
    hf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(tmp_path)
    with pytest.raises(MultifslError, match="Siglip2ImageProcessorPil, does not bring every image to one size"):
        Vision(str(tmp_path))


# ---- names ----


def test_an_unknown_name_says_what_to_do() -> None:
    with no_downloads(), pytest.raises(DataNotFound) as caught:
        Vision("nobody/nothing")
    assert str(caught.value).startswith("no image model 'nobody/nothing'; tried the folder nobody/nothing: not there")
    assert 'bring the folder here and name it: vision(model="FOLDER")' in str(caught.value)


def test_a_cached_model_without_its_preprocessing_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "ab" * 20
    home = tmp_path / "models--some--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    snapshot = Path(shutil.copytree(tiny_vision("vit"), home / "snapshots" / commit))
    with no_downloads():
        assert Vision("some/model").revision == commit
        (snapshot / "preprocessor_config.json").rename(snapshot / "processor_config.json")  # as newer versions name it
        assert find_model("some/model", None, "image").folder == snapshot
        (snapshot / "processor_config.json").unlink()
        assert find_model("some/model", None, "text").folder == snapshot
        with pytest.raises(DataNotFound, match=f"{snapshot}: it has no preprocessor_config.json"):
            Vision("some/model")


# ---- LoRA ----


needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")


@needs_peft
@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip", "convnext", "swin"])
def test_adapters_begin_at_the_published_model_and_are_all_that_learns(kind: str) -> None:
    """W x + B A x with B = 0 is W x; then one step of SGD moves B, and the next one A, and nothing else."""
    plain, encoder = Vision(str(tiny_vision(kind))), Vision(str(tiny_vision(kind)), lora=2)
    x = plain.preprocess(images())
    assert_close(encoder.embed(x), plain.embed(x), rtol=0, atol=1e-6)
    assert not encoder.published
    before = {name: p.clone() for name, p in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        encoder(x).square().sum().backward()
        optimizer.step()
    moved = {name for name, p in encoder.state_dict().items() if not torch.equal(p, before[name])}
    adapters = {name for name in before if "lora_A" in name or "lora_B" in name}
    assert moved == adapters and adapters == {name for name, p in encoder.named_parameters() if p.requires_grad}


@needs_peft
def test_an_adapted_layer_is_the_paper_s_sum() -> None:
    encoder = Vision(str(tiny_vision("vit")), lora=3)
    layer = next(m for name, m in encoder.network.named_modules() if name.endswith("q_proj"))
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        x = torch.randn(5, 16)
        expected = x @ layer.base_layer.weight.T + layer.base_layer.bias + (x @ a.T) @ b.T  # scaled by 1
        assert a.shape == (3, 16) and b.shape == (16, 3)
        assert_close(layer(x), expected)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip"])
def test_meta_gradients_are_the_same_together_and_in_turn(kind: str) -> None:
    """Of second order, through every parameter; in float64, vmap and the loop over tasks agree."""
    found = []
    for vectorize in (False, True):
        torch.manual_seed(0)
        encoder = Vision(str(tiny_vision(kind)))
        spec = f"maml(steps=1, lr=0.01, max_way=2, vectorize={vectorize})"
        method = build("methods", spec, encoder=encoder).double().train()
        assert method.adapted == [name for name, _ in encoder.named_parameters()]
        method(episodes(encoder)).loss.mean().backward()
        found.append([p.grad for p in method.parameters()])
    assert_close(*found, rtol=1e-6, atol=1e-9)


def episodes(encoder: Vision) -> Episode:
    """Two tasks of two classes."""
    x = torch.as_tensor(encoder.preprocess(images(8))).view(2, 4, 3, SIDE, SIDE)
    y = torch.tensor([[0, 1, 0, 1]] * 2)
    return Episode(Batch(x, y), Batch(x.flip(1), y.flip(1)), torch.ones(2, 2, dtype=torch.bool))


@needs_peft
@pytest.mark.parametrize("vectorize", [False, True])
def test_maml_adapts_the_adapters_alone(vectorize: bool) -> None:
    encoder = Vision(str(tiny_vision("vit")), lora=2)
    method = build("methods", f"maml(trainable='lora_', steps=2, max_way=2, vectorize={vectorize})", encoder=encoder)
    assert all("lora_" in name for name in method.adapted)
    method.train()(episodes(encoder)).loss.mean().backward()
    touched = {name for name, p in method.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}
    assert touched and all("lora_" in name or name.startswith("linear") for name in touched)


@needs_peft
@pytest.mark.parametrize(
    "method",
    ["finetune(steps=2)", "finetune(steps=2, trainable='last')", "maml(steps=2, max_way=2)", "reptile(max_way=2)"],
)
def test_whatever_is_adapted_the_model_under_the_adapters_stays(method: str) -> None:
    """By default, which is "all", and by "last": weights handed to the task's own copy are the adapters'."""
    encoder = Vision(str(tiny_vision("vit")), lora=2)
    base = {name: b.clone() for name, b in encoder.named_buffers()}
    made = build("methods", method, encoder=encoder)
    assert made.adapted and all("lora_" in name for name in made.adapted)
    x = torch.as_tensor(encoder.preprocess(images()))
    state = made.eval().adapt(Batch(x, torch.tensor([0, 1, 0, 1])), torch.tensor([True, True]))
    assert not any("base_layer" in name for name in state.weights)
    assert_close(dict(encoder.named_buffers()), base, rtol=0, atol=0)


@needs_peft
def test_a_network_with_running_statistics_takes_no_adapters() -> None:
    with pytest.raises(MultifslError, match="lora=2 is not for a ResNetModel: training would move its batch norm"):
        Vision(str(tiny_vision("resnet")), lora=2)


@needs_peft
def test_adapters_are_saved_alone_and_belong_to_their_model(tmp_path: Path) -> None:
    """A file of the adapters' size; with other weights under the same name it is refused."""
    from safetensors.torch import load_file, save_file

    from multifsl import FewShotClassifier

    folder = tmp_path / "vit"
    shutil.copytree(tiny_vision("vit"), folder)
    FewShotClassifier(f"vision(model={str(folder)!r}, lora=2)").fit(images(), ["a", "b", "a", "b"]).save(tmp_path / "m")
    inside = load_file(tmp_path / "m" / "model.safetensors")
    assert any("lora_A" in name for name in inside) and not any("base_layer" in name for name in inside)
    weights = load_file(folder / "model.safetensors")
    name = next(k for k in weights if k.endswith("layernorm.bias"))
    save_file({**weights, name: weights[name] + 0.01}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MultifslError, match="trained beside other published weights"):
        FewShotClassifier.load(tmp_path / "m")


@needs_peft
def test_a_saved_model_and_a_saved_run_have_their_adapters(tmp_path: Path) -> None:
    from multifsl import FewShotClassifier
    from multifsl.checkpoint import load_run, save_run

    encoder = Vision(str(tiny_vision("vit")), lora=2)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    pictures = images()
    model = FewShotClassifier(encoder).fit(pictures, ["a", "b", "a", "b"])
    model.save(tmp_path / "model")
    again = FewShotClassifier.load(tmp_path / "model")
    np.testing.assert_allclose(again.predict_proba(pictures), model.predict_proba(pictures), rtol=0, atol=1e-6)
    (tmp_path / "run").mkdir()
    save_run(tmp_path / "run", build("methods", "prototypical", encoder=encoder), {})
    x = encoder.preprocess(pictures)
    assert_close(load_run(tmp_path / "run").method.encoder.embed(x), encoder.embed(x), rtol=0, atol=0)


def test_wrong_ranks_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, -1, 2.5, True, "8"):
        with pytest.raises(MultifslError, match="lora is the rank of the adapters, a whole number from 1 on"):
            Vision(str(tiny_vision("vit")), lora=rank)  # type: ignore[arg-type]
    monkeypatch.setattr(_lora, "find_spec", lambda name: None)
    with pytest.raises(MultifslError, match=r'needs the package peft, .*: pip install "multifsl\[lora\]"'):
        Vision(str(tiny_vision("vit")), lora=8)


# ---- the default ----


def test_the_example_of_the_documentation() -> None:
    run_examples(Vision, "facebook/dinov2-small", "image")
