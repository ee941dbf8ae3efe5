"""Writes tests/reference/ge2e.json: embeddings by the original Resemblyzer package, the oracle of the encoder `ge2e`.

The package needs older versions of numpy and scipy than ours, so it stands in a folder of its own; torch is the installed one:

    pip install --target /tmp/resemblyzer --no-deps resemblyzer==0.1.4 librosa==0.10.2.post1 numpy==1.26.4 scipy==1.11.4 \\
        webrtcvad-wheels numba llvmlite audioread pooch lazy_loader soxr msgpack joblib scikit-learn threadpoolctl decorator \\
        soundfile platformdirs requests cffi pycparser packaging typing_extensions urllib3 idna certifi charset_normalizer
    PYTHONPATH=/tmp/resemblyzer:. python scripts/ge2e_reference.py

The package's voice activity detector, which `ge2e` goes without, is not run; a clip below 1.6 s is repeated, as `ge2e` does.
"""

import json
import math
from pathlib import Path

import numpy as np
from resemblyzer import VoiceEncoder, audio, sampling_rate

from tests.reference.ge2e import clips

FILE = Path(__file__).parent.parent / "tests" / "reference" / "ge2e.json"


def main() -> None:
    encoder = VoiceEncoder("cpu", verbose=False)
    embeddings = {}
    for name, wave in clips().items():
        wave = np.rint(wave * 32768).clip(-32768, 32767) / 32768  # as a file of 16 bits holds it
        wave = np.tile(wave, math.ceil(1.6 * sampling_rate / len(wave)))
        wave = audio.normalize_volume(wave.astype(np.float32), audio.audio_norm_target_dBFS, increase_only=True)
        embeddings[name] = [round(float(value), 6) for value in encoder.embed_utterance(wave)]
    rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in embeddings.items())
    FILE.write_text(f"{{\n{rows}\n}}\n")
    print(f"{FILE}: {len(embeddings)} embeddings")


if __name__ == "__main__":
    main()
