"""Published speech encoders. Oracles: the same model called by hand, clip by clip, through the library's own feature extractor."""

import json
import re
import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from multifsl.encoder import no_downloads
from multifsl.encoders._padding import MaskedGroupNorm, valid_frames
from multifsl.encoders._waves import waves_reader
from multifsl.encoders._xvector import XVector
from multifsl.encoders.audio import Audio, TruncatedClipsWarning
from multifsl.errors import BadFile, BadItem, DataNotFound, MultifslError
from multifsl.registry import build, resolved
from tests.tiny_audio import save, saved

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")

XVECTORS = ["WavLMForXVector", "UniSpeechSatForXVector"]
WAVES = [*XVECTORS, "WavLMModel", "Wav2Vec2Model", "HubertModel", "UniSpeechSatModel", "Data2VecAudioModel", "SEWModel"]
FRAMES = ["WhisperForConditionalGeneration", "ASTForAudioClassification"]
EVERY = [*WAVES, "Wav2Vec2ConformerModel", *FRAMES]


def clips(*lengths: int) -> list[tuple[np.ndarray, int]]:
    """Harmonics of a gliding pitch with some noise, int16."""
    rng = np.random.default_rng(0)
    made = []
    for i, n in enumerate(lengths or (9000, 6100, 12345, 6123, 9000)):
        phase = np.cumsum(2 * np.pi * (110 + 30 * i + 20 * np.sin(np.arange(n) / 900)) / 16000)
        wave = sum(np.sin(k * phase) / k for k in range(1, 9)) / 4 + 0.02 * rng.normal(size=n)
        made.append((np.rint(wave * 20000).clip(-32768, 32767).astype(np.int16), 16000))
    return made


def by_hand(folder: Path, wave: np.ndarray, pooling: str, layer: int | None = None) -> np.ndarray:
    """One clip through the library, without padding; the mean over its frames as a loop."""
    import transformers as hf

    extractor = hf.AutoFeatureExtractor.from_pretrained(folder)
    kind: Any = hf.AutoModelForAudioXVector if pooling == "xvector" else hf.AutoModel
    network = kind.from_pretrained(folder).eval()
    x = extractor(wave / np.float32(32768), sampling_rate=16000, return_tensors="pt")
    x.pop("attention_mask", None)
    whisper, ast = "input_features" in x, network.config.model_type == "audio-spectrogram-transformer"
    with torch.no_grad():
        out = (network.get_encoder() if whisper else network)(**x, output_hidden_states=True)
    if pooling == "xvector":
        return np.asarray(out.embeddings[0])
    states = np.asarray((out.last_hidden_state if layer is None else out.hidden_states[layer])[0], dtype=np.float64)
    if pooling == "cls":
        return np.asarray(out.pooler_output[0])
    if whisper:
        chosen = [states[t] for t in range(100) if t * 320 < len(wave)]
    elif ast:
        frames = min(128, 1 + (len(wave) - 400) // 160)
        across, down = (128 - 16) // 10 + 1, (32 - 16) // 10 + 1
        chosen = [states[2 + f * across + t] for f in range(down) for t in range(across) if 10 * t < frames]
    else:
        chosen = list(states)
    total = np.zeros(states.shape[1])
    for state in chosen:
        total += state
    return total / len(chosen)


# ---- embeddings ----


@pytest.mark.parametrize("kind", EVERY)
def test_embeddings_equal_the_model_called_by_hand(kind: str) -> None:
    encoder = Audio(str(saved(kind)))
    assert encoder.pooling == ("xvector" if kind in XVECTORS else "mean")
    expected = np.stack([by_hand(saved(kind), wave, encoder.pooling) for wave, _ in clips()])
    assert expected.std(0).mean() > 1e-2 * np.abs(expected).max()
    x = encoder.preprocess(clips())
    close: Any = {"rtol": 0, "atol": 1e-5 * max(1.0, float(np.abs(expected).max()))}
    np.testing.assert_allclose(encoder(x).detach().numpy(), expected, **close)  # all in one padded batch
    np.testing.assert_allclose(encoder.embed(x, batch_size=2).numpy(), expected, **close)
    assert encoder.dim == expected.shape[1]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("WavLMForXVector", {"use_weighted_layer_sum": True}),
        ("Wav2Vec2ForXVector", {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}),
        ("WavLMModel", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
        ("Wav2Vec2Model", {"add_adapter": True, "num_adapter_layers": 1}),
        ("HubertModel", {"conv_pos_batch_norm": True}),
    ],
)
def test_variants_equal_the_model_called_by_hand(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    folder = save(tmp_path / "model", kind, {"do_normalize": "Hubert" not in kind}, **changes)
    encoder = Audio(str(folder))
    expected = np.stack([by_hand(folder, wave, encoder.pooling) for wave, _ in clips()])
    np.testing.assert_allclose(encoder(encoder.preprocess(clips())).detach().numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("kind", ["WavLMForXVector", "Wav2Vec2Model", *FRAMES])
def test_layers_are_those_of_the_library(kind: str, layer: int) -> None:
    encoder = Audio(str(saved(kind)), layer=layer)
    assert encoder.pooling == "mean"
    blocks = [name for name, _ in encoder.named_modules() if re.search(r"layers\.\d+$", name) and "conv" not in name]
    assert len(blocks) == min(layer + 1, 3 if "Wav" in kind else 2)  # one more than is used: whose input it is
    expected = np.stack([by_hand(saved(kind), wave, "mean", layer) for wave, _ in clips()])
    np.testing.assert_allclose(encoder(encoder.preprocess(clips())).detach().numpy(), expected, rtol=0, atol=2e-5)


def test_asts_class_tokens_are_its_own_pooling() -> None:
    encoder = Audio(str(saved(FRAMES[1])), pooling="cls")
    expected = np.stack([by_hand(saved(FRAMES[1]), wave, "cls") for wave, _ in clips()])
    np.testing.assert_allclose(encoder(encoder.preprocess(clips())).detach().numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_are_those_of_the_feature_extractor(kind: str) -> None:
    """Of clips that are shorter, as long, and longer than the model reads."""
    import transformers as hf

    extractor: Any = hf.AutoFeatureExtractor.from_pretrained(saved(kind))
    reader = waves_reader(extractor, "the model", 1)
    for n in (1600, 12345, int(reader.longest or 0), 40_000):
        wave = torch.from_numpy(clips(n)[0][0] / np.float32(32768))
        theirs = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")
        ours = reader(wave[None, : reader.longest], torch.tensor([min(n, int(reader.longest or 0))]))
        for name, value in ours.items():
            assert value is not None
            assert_close(value, theirs[name], rtol=1e-4, atol=1e-4)


# ---- padding ----


@pytest.mark.parametrize("kind", EVERY)
def test_padding_changes_neither_embeddings_nor_gradients(kind: str) -> None:
    encoder = Audio(str(saved(kind)))
    x = encoder.preprocess(clips())
    assert isinstance(x, dict)
    parameters = list(encoder.parameters())
    alone = torch.cat([encoder(encoder.preprocess([clip])) for clip in clips()])
    for padded in (x, {**x, "wave": torch.cat([x["wave"], torch.full((5, 999), 321, dtype=torch.int16)], 1)}):
        z = encoder(padded)  # what stands behind a clip's end is no matter either
        assert_close(z, alone, rtol=1e-4, atol=1e-4)
        ours, theirs = (torch.autograd.grad(e.sum(), parameters, retain_graph=True) for e in (z, alone))
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b, rtol=1e-3, atol=1e-3 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize(
    ("kind", "changes", "apart"),
    [
        ("WavLMForXVector", {}, False),
        ("Wav2Vec2Model", {}, False),
        ("HubertModel", {}, False),
        ("Wav2Vec2Model", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}, False),
        ("HubertModel", {"conv_pos_batch_norm": True}, True),  # moves the zeros of padding away from 0
        ("Wav2Vec2Model", {"add_adapter": True, "num_adapter_layers": 1}, True),  # its convolution looks beyond the end
        ("Data2VecAudioModel", {}, True),
        ("Wav2Vec2ConformerModel", {}, True),
        ("SEWModel", {}, True),
    ],
)
def test_networks_that_see_padding_are_found(tmp_path: Path, kind: str, changes: dict[str, Any], apart: bool) -> None:
    """Those are run on clips of equal length together, the others on all at once."""
    encoder = Audio(str(save(tmp_path / "model", kind, **changes)))
    shapes: list[tuple[int, ...]] = []
    encoder.network.register_forward_pre_hook(
        lambda _m, _a, x: shapes.append(tuple(x["input_values"].shape)), with_kwargs=True
    )
    encoder(encoder.preprocess(clips()))
    assert shapes == ([(1, 6100), (1, 6123), (2, 9000), (1, 12345)] if apart else [(5, 12345)])


def test_a_group_norm_counts_valid_frames_alone() -> None:
    torch.manual_seed(0)
    norm = MaskedGroupNorm(6, 6)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x, counts = torch.randn(3, 6, 20) * 3 + 5, [20, 7, 2]
    token = valid_frames.set(torch.tensor(counts))
    masked = norm(x)
    valid_frames.reset(token)
    for row, count in enumerate(counts):
        alone = nn.functional.group_norm(x[row : row + 1, :, :count], 6, norm.weight, norm.bias)
        assert_close(masked[row : row + 1, :, :count], alone, rtol=1e-4, atol=1e-4)
    assert_close(norm(x), nn.functional.group_norm(x, 6, norm.weight, norm.bias))
    assert norm.half()(x.half()).dtype == torch.half


@pytest.mark.parametrize("kind", ["WavLMForXVector", "Wav2Vec2Model", *FRAMES])
def test_a_row_that_is_not_there_is_inert(kind: str) -> None:
    encoder = Audio(str(saved(kind)))
    x = encoder.preprocess(clips()[:3])
    assert isinstance(x, dict)
    x["length"][1], x["wave"][1] = 0, 0
    z = encoder(x)
    assert z.isfinite().all()
    assert_close(z[[0, 2]], encoder(encoder.preprocess([clips()[0], clips()[2]])), rtol=1e-4, atol=1e-4)
    grads = torch.autograd.grad(z[[0, 2]].sum(), list(encoder.parameters()))
    assert all(g.isfinite().all() for g in grads)


def test_an_x_vector_is_the_sum_over_its_frames() -> None:
    """Mean and deviation (N - 1) of frames whose context is whole, clip by clip in float64."""
    config = type("Config", (), {"tdnn_dim": (4, 4, 6), "tdnn_kernel": (5, 3, 1), "tdnn_dilation": (1, 3, 1)})
    config.hidden_size, config.num_hidden_layers, config.xvector_output_dim = 8, 2, 5  # type: ignore[attr-defined]
    config.use_weighted_layer_sum = False  # type: ignore[attr-defined]
    torch.manual_seed(0)
    head = XVector(config).double()
    assert head.context == 10
    states, frames = torch.randn(3, 30, 8, dtype=torch.float64), [30, 17, 12]
    z = head([states], torch.tensor(frames))
    for row, count in enumerate(frames):
        h = head.projector(states[row, :count]).T
        for conv in head.tdnn:
            h = torch.relu(conv(h))
        assert h.shape[1] == count - 10
        assert_close(z[row], head.out(torch.cat([h.mean(1), h.std(1)])), rtol=1e-5, atol=1e-5)


# ---- clips ----


def test_a_short_clip_is_repeated() -> None:
    encoder = Audio(str(saved("WavLMForXVector")))
    # 8 frames of context and 2 more, through three convolutions
    assert encoder.reader.shortest == ((9 * 4 + 2 - 1) * 4 + 3 - 1) * 5 + 10
    encoder.reader.shortest = 4000
    wave = clips(1700)[0][0]
    loaded = encoder.load((wave, 16000))
    np.testing.assert_array_equal(loaded, np.concatenate([wave, wave, wave])[:4000])


@pytest.mark.parametrize("frames", [1, 2, 16])
def test_the_shortest_clip_is_what_the_convolutions_need(frames: int) -> None:
    """One sample less is a frame less, by the library's own sum; wav2vec 2.0's numbers."""
    import transformers as hf

    from multifsl.encoders._padding import conv_samples

    config = hf.Wav2Vec2Config()
    count = conv_samples(frames, config.conv_kernel, config.conv_stride)
    lengths: Any = hf.Wav2Vec2Model._get_feat_extract_output_lengths
    network = type("Network", (), {"config": config})
    assert [int(lengths(network, torch.tensor(n), add_adapter=False)) for n in (count, count - 1)] == [
        frames,
        frames - 1,
    ]


@pytest.mark.parametrize("kind", FRAMES)
def test_a_long_clip_is_cut_with_a_warning(kind: str) -> None:
    encoder = Audio(str(saved(kind)))
    longest = encoder.reader.longest
    assert longest == (32_000 if "Whisper" in kind else 400 + 127 * 160)
    wave = clips(40_000)[0][0]
    with pytest.warns(
        TruncatedClipsWarning, match=r"a clip of 2\.5 s: .* reads the first (2|1\.295) s, and what is beyond"
    ):
        z = encoder.embed(encoder.preprocess([(wave, 16000)]))
    assert_close(z, encoder.embed(encoder.preprocess([(wave[:longest], 16000)])))
    encoder.preprocess([(wave, 16000)])  # once is enough


def test_items_are_checked() -> None:
    encoder = Audio(str(saved("Wav2Vec2Model")))
    with pytest.raises(BadItem, match="silent"):
        encoder.preprocess([(np.zeros(16000), 16000)])


# ---- training ----


@pytest.mark.parametrize("kind", EVERY)
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    """What no embedding depends on (masked spans, heads of other tasks) is no parameter; Whisper's positions stay as they are."""
    encoder = Audio(str(saved(kind)))
    assert not any(
        word in name for name, _ in encoder.named_parameters() for word in ("masked_spec", "classifier", "decoder")
    )
    if "Whisper" in kind:
        assert "network.embed_positions.weight" in dict(encoder.named_buffers())
    grads = torch.autograd.grad(encoder.train()(encoder.preprocess(clips())).square().sum(), list(encoder.parameters()))
    assert all(g.isfinite().all() for g in grads) and sum(float(g.abs().max()) > 0 for g in grads) > 0.9 * len(grads)


@pytest.mark.parametrize("kind", ["WavLMModel", "Wav2Vec2Model"])
def test_training_drops_no_layers_and_masks_no_spans(tmp_path: Path, kind: str) -> None:
    none: Any = dict.fromkeys(["hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"], 0.0)
    encoder = Audio(
        str(save(tmp_path / "model", kind, layerdrop=0.9, mask_time_prob=0.5, mask_feature_prob=0.5, **none))
    )
    x = encoder.preprocess(clips())
    assert_close(encoder.train()(x), encoder.eval()(x))


@pytest.mark.parametrize("kind", ["WavLMForXVector", *FRAMES])
def test_a_step_runs_on_another_device(kind: str) -> None:
    """The "meta" device raises where a tensor is made on the CPU by mistake, and where the device would be waited for."""
    encoder = Audio(str(saved(kind))).to("meta")
    x = encoder.preprocess(clips())
    assert isinstance(x, dict)
    z = encoder.train()({name: leaf.to("meta") for name, leaf in x.items()})
    z.sum().backward()
    assert z.shape == (5, encoder.dim) and all(p.grad is not None for p in encoder.parameters())


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_a_network_that_vmap_cannot_run_says_so() -> None:
    """Whisper's is as many calls; WavLM's writes into a masked tensor, which vmap forbids."""
    for kind in ("WhisperForConditionalGeneration", "WavLMForXVector"):
        encoder = Audio(str(saved(kind)))
        x = encoder.preprocess(clips())
        assert isinstance(x, dict)
        tasks = {name: torch.stack([leaf, leaf.flip(0)]) for name, leaf in x.items()}
        if kind == "WavLMForXVector":
            with pytest.raises(MultifslError, match=r"cannot be vectorised over tasks .*; take vectorize=False"):
                torch.vmap(encoder)(tasks)
        else:
            assert_close(
                torch.vmap(encoder)(tasks), torch.stack([encoder(x), encoder(x).flip(0)]), rtol=1e-4, atol=1e-5
            )


@pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
@pytest.mark.parametrize("kind", ["WavLMForXVector", "Wav2Vec2Model", *FRAMES])
def test_lora_trains_adapters_alone(kind: str) -> None:
    encoder, plain = Audio(str(saved(kind)), lora=2), Audio(str(saved(kind)))
    x = encoder.preprocess(clips())
    assert_close(encoder(x), plain(x))  # until they are trained
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained) and not encoder.published
    grads = torch.autograd.grad(encoder(x).square().sum(), list(trained.values()))
    assert all(float(g.abs().max()) > 0 for name, g in zip(trained, grads, strict=True) if "lora_B" in name)
    assert resolved(encoder).endswith("lora=2)")


def test_bfloat16_weights() -> None:
    encoder = Audio(str(saved("WavLMForXVector")))
    x = encoder.preprocess(clips())
    exact = encoder.embed(x)
    rounded = encoder.bfloat16().embed(x)
    assert rounded.dtype == torch.bfloat16
    assert float(torch.cosine_similarity(rounded.float(), exact).min()) > 0.98


# ---- arguments and files ----


def test_the_spec_names_every_argument() -> None:
    folder = saved("WavLMForXVector")
    encoder = Audio(str(folder))
    assert resolved(encoder) == f"audio(model='{folder}', pooling='xvector', layer=None, revision=None, lora=None)"
    assert encoder.published and not any(m.training for m in encoder.modules())
    x = encoder.preprocess(clips())
    assert_close(build("encoders", resolved(encoder)).embed(x), encoder.embed(x), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("Wav2Vec2Model", {"pooling": "max"}, "no pooling 'max'; known: 'xvector', 'mean', 'cls'"),
        ("Wav2Vec2Model", {"pooling": "xvector"}, "has no such head; use 'mean'"),
        ("Wav2Vec2Model", {"pooling": "cls"}, "pooling='cls' takes AST's class tokens, but .* has none; use 'mean'"),
        ("Wav2Vec2Model", {"layer": 4}, "layer must be from 0 to 3 for .*; not 4 with 'mean'"),
        ("WavLMForXVector", {"layer": -1}, "layer must be from 0 to 3 for .*; not -1 with 'mean'"),
        ("WavLMForXVector", {"layer": 1, "pooling": "xvector"}, "with pooling 'mean' or 'cls'; not 1 with 'xvector'"),
        ("WavLMForXVector", {"lora": 0}, "lora is the rank of the adapters"),
    ],
)
def test_wrong_arguments(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        Audio(str(saved(kind)), **options)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A model's folder to do harm to."""
    return Path(shutil.copytree(saved("WavLMForXVector"), tmp_path / "copy"))


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_damaged_files(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no weights at all" * 9):
        (copy / "model.safetensors").write_bytes(damaged)
        with pytest.raises(BadFile, match=f"cannot read the audio model {copy}"):
            Audio(str(copy))
    (copy / "model.safetensors").write_bytes(whole)
    change(copy / "config.json", xvector_output_dim=21)
    with pytest.raises(BadFile, match=r"x-vector head of .*: feature_extractor\.weight is missing or of another shape"):
        Audio(str(copy))
    change(copy / "config.json", xvector_output_dim=20, num_hidden_layers=4)
    with pytest.raises(BadFile, match=r"are not those of its config\.json: \d+ tensors of a WavLMModel"):
        Audio(str(copy))
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(BadFile, match=r"it has no preprocessor_config\.json"):
        Audio(str(copy))


@pytest.mark.parametrize("name", ["wavlm.encoder.layers.0.feed_forward.output_dense.weight", "tdnn.1.kernel.weight"])
def test_weights_that_are_not_finite_or_not_there(copy: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors[name][0, 0] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadFile, match="are damaged: a clip's embedding is not finite"):
        Audio(str(copy))
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadFile, match=r"missing or of another shape"):
        Audio(str(copy))


def test_weights_in_several_files(copy: Path) -> None:
    import transformers as hf

    whole = Audio(str(copy))
    network: Any = hf.WavLMForXVector.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    network.save_pretrained(copy, max_shard_size="20KB")
    assert len(list(copy.glob("model-*.safetensors"))) > 2
    x = whole.preprocess(clips())
    assert_close(Audio(str(copy)).embed(x), whole.embed(x), atol=0, rtol=0)
    # as older models, the default among them, have their weights: pickled, in one file or several
    tensors = dict(network.state_dict())
    for file in copy.glob("model*safetensors*"):
        file.unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    assert_close(Audio(str(copy)).embed(x), whole.embed(x), atol=0, rtol=0)
    (copy / "pytorch_model.bin").unlink()
    places = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(tensors)}
    for place in set(places.values()):
        torch.save({name: tensors[name] for name in tensors if places[name] == place}, copy / place)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_close(Audio(str(copy)).embed(x), whole.embed(x), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_rate": 8000}, "reads audio of 8000 Hz; models of 16000 Hz are known here"),
        (
            {"padding_value": 1.0},
            "has a Wav2Vec2FeatureExtractor of a kind that is not known here; known: those of wav2vec",
        ),
        (
            {"feature_extractor_type": "SeamlessM4TFeatureExtractor"},
            "has a SeamlessM4TFeatureExtractor of a kind that is not",
        ),
        ({"feature_extractor_type": "NoSuchThing"}, "cannot read the audio model"),
    ],
)
def test_feature_extractors_that_are_not_known(copy: Path, changes: dict[str, Any], message: str) -> None:
    change(copy / "preprocessor_config.json", **changes)
    with pytest.raises(BadFile, match=message):
        Audio(str(copy))


def test_models_that_are_no_audio_encoders(tmp_path: Path, copy: Path) -> None:
    import transformers as hf

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    hf.BertModel(hf.BertConfig(**sizes, vocab_size=9)).save_pretrained(tmp_path / "bert")
    hf.ViTModel(hf.ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path / "vit")
    for name, kind in (("bert", "BertModel"), ("vit", "ViTModel")):
        shutil.copy(copy / "preprocessor_config.json", tmp_path / name)
        with pytest.raises(BadFile, match=f"is no audio encoder but a {kind}"):
            Audio(str(tmp_path / name))
    whisper, ast = saved(FRAMES[0]), Path(shutil.copytree(saved(FRAMES[1]), tmp_path / "ast"))
    shutil.copy(whisper / "preprocessor_config.json", ast)
    with pytest.raises(BadFile, match="cannot be used as an audio encoder"):
        Audio(str(ast))


def test_without_a_network_the_answer_comes_fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    started = time.perf_counter()
    with no_downloads(), pytest.raises(DataNotFound) as caught:
        Audio()
    assert time.perf_counter() - started < 5
    message = str(caught.value)
    assert message.startswith("no audio model 'microsoft/wavlm-base-plus-sv'; tried the folder")
    assert 'bring the folder here and name it: audio(model="FOLDER")' in message


def test_loading_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    folder = saved("HubertModel")
    capfd.readouterr()
    encoder = Audio(str(folder))
    z: Tensor = encoder(encoder.preprocess(clips()))
    assert z.shape == (5, 32) and capfd.readouterr() == ("", "")
