"""Published models: reading them from their folder, and running them.

A reader is what turns items into a network's input: a tokenizer, an image processor, or a feature extractor.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multifsl.encoders._hub import Kind, first_line, has_safetensors
from multifsl.episode import Inputs, lengths, map_inputs, trim
from multifsl.errors import BadFile, MultifslError

# Of a model of several kinds, such as CLIP, one part is read: the attribute of its configuration that describes it.
PARTS = {"image": "vision_config", "audio": "audio_config"}
READERS = {"text": "AutoTokenizer", "image": "AutoImageProcessor", "audio": "AutoFeatureExtractor"}
INPUTS = {"image": ("pixel_values",), "audio": ("input_values", "input_features")}
# What a published model may lack: poolers that no task has trained, and what stands for masked frames while pre-training.
SPARE = {"text": ("pooler.",), "image": ("pooler.",), "audio": ("pooler.", "masked_spec_embed")}
BLOCK = 16  # items of similar length run together on a CPU


def load_model(folder: Path, name: str, kind: Kind = "text") -> tuple[Any, Any]:
    """The network in that folder, in float32, and its reader. Of Whisper and its kin, the encoder; of CLIP, one tower.

    A pooler is kept for images alone, and there only if its weights are published. Where there are no safetensors but a
    pytorch_model.bin, torch's restricted unpickler reads that: tensors and plain containers, and no code.

    Raises BadFile where the files are damaged, do not belong together, or are not those of an encoder of that kind.
    """
    # Tokenizers' threads and a later fork (a DataLoader's worker) do not go together: it warns on stderr at every fork.
    # One thread tokenises 25,000 short texts a second. Whoever has set the variable is not overruled.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    place = str(folder) if Path(name).expanduser().is_dir() else f"{name} ({folder})"
    with _quiet():
        import transformers as hf

        with _reading(f"{kind} model {place}"):
            config = hf.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config = getattr(config, PARTS[kind], None) or config if kind in PARTS else config
            # The first takes the encoder alone out of T5 and its kin, the second knows every other kind.
            text_encoder = kind == "text" and type(config) in hf.MODEL_FOR_TEXT_ENCODING_MAPPING
            network, report = (hf.AutoModelForTextEncoding if text_encoder else hf.AutoModel).from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,  # without it, the type that the weights were stored in
                use_safetensors=has_safetensors(folder),
                weights_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # looked at below, with a better message
                local_files_only=True,
                trust_remote_code=False,
            )
        _check_filled(network, report, place, kind)
        if kind in INPUTS:
            video = type(config) in hf.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING
            if video or network.main_input_name not in INPUTS[kind]:
                raise BadFile(f"{place} is no {kind} encoder but a {type(network).__name__}")
        with _reading(f"{kind} model {place}"):
            # Pillow for images, so that torchvision, where it is installed, does not change what a network sees.
            backend = {"backend": "pil"} if kind == "image" else {}
            reader = getattr(hf, READERS[kind]).from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **backend
            )
    if kind == "text":
        _check_text(network, reader, place, text_encoder)
        reader.padding_side = reader.truncation_side = "right"
    if kind == "audio" and config.is_encoder_decoder:
        network = network.get_encoder()
    return network, reader


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library raises a dozen kinds; each means that the files will not do
        said = first_line(error)
        if said.startswith("Weights only load failed"):  # and then what PyTorch 2.6 changed
            said = "its pickled weights are damaged, or hold more than weights (Weights only load failed)"
        raise BadFile(f"cannot read the {what}: {said}") from error


def _check_filled(network: Any, report: dict[str, Any], place: str, kind: Kind) -> None:
    """Refuse weights that do not fill the network, and take the pooler out where it is not used or not filled."""
    unfilled = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if bad := sorted(key for key in unfilled if not key.startswith(SPARE[kind])):
        raise BadFile(
            f"the weights of {place} are not those of its config.json: {len(bad)} tensors of a {type(network).__name__} "
            f"are missing or of another shape, such as {bad[0]}"
        )
    # Unused, it would have DistributedDataParallel wait for its gradients.
    if getattr(network, "pooler", None) is not None and (
        kind != "image" or any(key.startswith("pooler.") for key in unfilled)
    ):
        network.pooler = None


def _check_text(network: Any, tokenizer: Any, place: str, known: bool) -> None:
    try:
        table = network.get_input_embeddings()
    except NotImplementedError:
        table = None
    if not isinstance(table, nn.Embedding) or (network.config.is_encoder_decoder and not known):
        raise BadFile(f"{place} is no text encoder but a {type(network).__name__}")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise BadFile(f"the text model {place} has no tokenizer: tokenizer.json, or a vocabulary file, is missing")
    if len(tokenizer) > table.num_embeddings:
        raise BadFile(
            f"the tokenizer and the network of {place} are not a pair: {len(tokenizer)} tokens, of which the network "
            f"knows {table.num_embeddings}"
        )
    if tokenizer.pad_token_id is None:
        raise MultifslError(
            f"{place} has no padding token, as is usual for models that write text ({network.config.model_type}), so texts "
            "cannot be batched; use a text encoder, such as the default"
        )


def keep_used(network: nn.Module, z: Tensor) -> None:
    """Turn the parameters that an embedding does not depend on into constants, neither trained nor saved.

    A mask token, a head that another pooling leaves out: DistributedDataParallel would wait for their gradients, and
    meta-learning would find none.

    z: what the network made of an item, with its graph.

    >>> net = nn.Linear(2, 2)
    >>> keep_used(net, net.weight.sum())
    >>> [name for name, _ in net.named_parameters()]
    ['weight']
    """
    used, seen, nodes = set(), {z.grad_fn}, [z.grad_fn]
    while nodes:  # through the graph to its leaves
        node: Any = nodes.pop()
        if type(node).__name__ == "AccumulateGrad":
            used.add(id(node.variable))
        fresh = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= fresh
        nodes += fresh
    make_constant(network, lambda parameter: id(parameter) not in used)


def make_constant(network: nn.Module, chosen: Callable[[nn.Parameter], bool]) -> None:
    """Turn the chosen parameters into buffers that are not saved."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if chosen(parameter):
                delattr(module, name)
                module.register_buffer(name, parameter.detach(), persistent=False)


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
