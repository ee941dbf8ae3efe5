"""Make the synthetic voices of `multifsl demo`.

Ten made-up voices each speak the same twelve sentences; the clips (16 kHz mono
OGG Vorbis, 1.2 to 2.2 s) go to multifsl/demo_data/voices/synthetic_NN/NN.ogg.
Needs the `espeak-ng` program (Debian package espeak-ng; 1.51 made the committed
clips) and the Python package `soundfile` >= 0.13. Run it as `python scripts/make_demo_voices.py`.
"""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import soundfile as sf

OUT = Path(__file__).resolve().parent.parent / "multifsl" / "demo_data" / "voices"
RATE = 16000

# espeak-ng voice + variant, pitch (0-99), speed (words a minute)
VOICES = [
    ("en-us+m1", 40, 160),
    ("en-gb+f2", 58, 165),
    ("en-gb-scotland+croak", 35, 160),
    ("en-us+klatt2", 45, 165),
    ("en-gb-x-rp+m7", 62, 175),
    ("en-us+f5", 75, 170),
    ("en-029+m3", 20, 155),
    ("en-gb-x-gbclan+whisper", 50, 160),
    ("en-gb-x-gbcwmd+f4", 40, 160),
    ("en-us-nyc+klatt4", 70, 175),
]

# Every voice says all of them, so the words don't tell the voices apart.
SENTENCES = [
    "The kettle is on the stove.",
    "Please close the garden gate.",
    "We walked along the river.",
    "Seven boats left the harbour.",
    "It might rain this evening.",
    "Put the blue cup back.",
    "My train arrives at noon.",
    "Fresh bread smells wonderful.",
    "Nobody heard the doorbell.",
    "Turn left after the bridge.",
    "The cat slept under a chair.",
    "Where did you park the car?",
]


def speak(text, voice, pitch, speed):
    command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(speed), "--stdout", text]
    # espeak-ng can't seek in a pipe, so its header carries a made-up length
    wav = bytearray(subprocess.run(command, check=True, capture_output=True).stdout)
    wav[4:8] = (len(wav) - 8).to_bytes(4, "little")
    wav[40:44] = (len(wav) - 44).to_bytes(4, "little")
    return sf.read(io.BytesIO(wav))


def resample(x, rate):
    step = np.gcd(rate, RATE)
    x = np.pad(x, (0, -len(x) % (rate // step)))
    n = len(x) * RATE // rate
    return np.fft.irfft(np.fft.rfft(x)[: n // 2 + 1], n) * n / len(x)


def trim(x, margin=RATE // 20):
    loud = np.flatnonzero(np.abs(x) > 0.02 * np.abs(x).max())
    return x[max(loud[0] - margin, 0) : loud[-1] + margin]


def level(x):
    # Same loudness for all, so that it doesn't tell the voices apart either.
    x = x * 0.08 / np.sqrt(np.mean(x**2))
    return x * min(1, 0.9 / np.abs(x).max())


def fix_serial(path, serial):
    """Replace the random serial number in every Ogg page, so that a rerun gives the same bytes."""
    data = bytearray(path.read_bytes())
    start = 0
    while start < len(data):
        n_segments = data[start + 26]
        lengths = data[start + 27 : start + 27 + n_segments]
        end = start + 27 + n_segments + sum(lengths)
        data[start + 14 : start + 18] = serial.to_bytes(4, "little")
        data[start + 22 : start + 26] = bytes(4)  # the checksum counts its own field as zero
        data[start + 22 : start + 26] = ogg_crc(data[start:end]).to_bytes(4, "little")
        start = end
    path.write_bytes(data)


def ogg_crc(page):
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x104C11DB7 if crc & 0x80000000 else 0)
    return crc


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for v, settings in enumerate(VOICES, 1):
        folder = OUT / f"synthetic_{v:02d}"
        folder.mkdir(parents=True)
        for s, text in enumerate(SENTENCES, 1):
            x = level(trim(resample(*speak(text, *settings))))
            assert 1.2 <= len(x) / RATE <= 2.2, (settings, text, len(x) / RATE)
            path = folder / f"{s:02d}.ogg"
            sf.write(path, x, RATE, "VORBIS", format="OGG", compression_level=0.8)
            fix_serial(path, serial=100 * v + s)


if __name__ == "__main__":
    main()
