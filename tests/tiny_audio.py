"""Small random speech networks, saved as the published ones are, for tests."""

import atexit
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

CONVS = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (5, 4, 4), "num_feat_extract_layers": 3}
SIZES: dict[str, Any] = {
    **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 8},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "initializer_range": 0.3, **CONVS},
    **{"tdnn_dim": (16, 16, 24), "tdnn_kernel": (5, 3, 1), "tdnn_dilation": (1, 2, 1), "xvector_output_dim": 20},
}
WHISPER: dict[str, Any] = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "num_mel_bins": 20, "max_source_positions": 100},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}
AST: dict[str, Any] = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
    **{"num_mel_bins": 32, "max_length": 128, "initializer_range": 0.3},
}


def save(folder: Path, kind: str, reader: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A network and its feature extractor. kind: the library's name of it, such as "WavLMForXVector" or "HubertModel"."""
    import transformers as hf

    torch.manual_seed(0)
    family = re.sub(r"(Model|For\w+)$", "", kind)
    sizes = {"Whisper": WHISPER, "AST": AST}.get(family, SIZES)
    network = getattr(hf, kind)(getattr(hf, f"{family}Config")(**{**sizes, **changes}))
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if "norm" in name or name.endswith("bias"):  # away from 1 and 0, where many a mistake would not show
                tensor.add_(torch.randn_like(tensor) * 0.2)
    network.save_pretrained(folder)
    own = {"Whisper": {"feature_size": 20, "chunk_length": 2}, "AST": {"num_mel_bins": 32, "max_length": 128}}
    name = f"{family if family in own else 'Wav2Vec2'}FeatureExtractor"
    getattr(hf, name)(**{**own.get(family, {"return_attention_mask": True}), **(reader or {})}).save_pretrained(folder)
    return folder


@cache
def saved(kind: str) -> Path:
    """The same, once a process, in a folder that is deleted at its end."""
    pytest.importorskip("transformers")
    home = Path(tempfile.mkdtemp(prefix="multifsl-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return save(home / kind, kind)


def here(spec: str) -> str:
    """A spec whose "tiny_audio:KIND" is such a folder: no path is in a test's name, so that all test processes agree on it."""
    return re.sub(r"tiny_audio:(\w+)", lambda found: str(saved(found[1])), spec)
