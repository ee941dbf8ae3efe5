"""Reading audio, log-mel frames, the masked layers and ECAPA-TDNN, each against an independent computation."""

import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn
from torch.func import functional_call, grad

from multifsl.archive import Member
from multifsl.encoder import Encoder
from multifsl.encoders._speech import (
    SAMPLE_RATE,
    Conv1d,
    LogMel,
    MaskedBatchNorm1d,
    MaskedBatchNorm2d,
    halved,
    load_waveform,
    masked_mean,
)
from multifsl.encoders.conv4_mel import Conv4Mel
from multifsl.encoders.ecapa import AttentivePooling, Ecapa, SERes2Block, SqueezeExcite
from multifsl.encoders.resnet_mel import BasicBlock, ResNetMel
from multifsl.errors import BadItem, MultifslError

close = torch.testing.assert_close


def noise(seconds: float = 0.5, rate: int = SAMPLE_RATE, seed: int = 0) -> np.ndarray:
    """int16 [n]: noise whose level and colour change over time, so that frames differ."""
    rng = np.random.default_rng(seed)
    n = round(seconds * rate)
    t = np.arange(n) / rate
    x = rng.normal(size=n) * (1 + np.sin(9 * t)) + 2 * np.sin(2 * np.pi * (300 + 900 * t) * t + seed)
    return np.asarray(2000 * x).astype(np.int16)


def batch(*seconds: float, longest: int = 0) -> dict[str, Tensor]:
    """Clips of the given durations, padded to the longest of them or to `longest` samples."""
    waves = [noise(s, seed=i) for i, s in enumerate(seconds)]
    out = torch.zeros(len(waves), max(longest, *map(len, waves)), dtype=torch.int16)
    for row, wave in zip(out, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return {"wave": out, "length": torch.tensor([len(w) for w in waves])}


KINDS: dict[str, Callable[[], Encoder]] = {
    "ecapa": lambda: Ecapa(channels=16, dim=12, n_mels=24),
    "conv4_mel": lambda: Conv4Mel(width=6, n_mels=24),  # an odd number of bands at the last block
    "resnet_mel": lambda: ResNetMel(channels=4, dim=12, n_mels=24, blocks=(1, 2, 1, 1)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def tiny(kind: str = "ecapa") -> Any:
    """A small encoder of 12 numbers whose every parameter and statistic is away from its initial value."""
    torch.manual_seed(0)
    encoder = KINDS[kind]()
    assert encoder.dim == 12
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None and module.running_var is not None
                for t in (module.weight, module.running_var):
                    None if t is None else t.uniform_(0.5, 1.5)
                for t in (module.bias, module.running_mean):
                    None if t is None else t.normal_(0, 0.3)
    return encoder


# ---- load_waveform ----


def test_files_pairs_and_members_load_alike(tmp_path: Path) -> None:
    wave = noise()
    soundfile.write(tmp_path / "a.wav", wave, SAMPLE_RATE)
    soundfile.write(tmp_path / "a.flac", wave, SAMPLE_RATE)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.wav", "in/a.wav")
        archive.write(tmp_path / "a.flac", "in/a.flac")
    stereo = np.stack([wave, wave])
    items = [
        tmp_path / "a.wav",
        str(tmp_path / "a.flac"),
        Member(tmp_path / "a.zip", "in/a.wav"),
        Member(tmp_path / "a.zip", "in/a.flac"),
        (wave, SAMPLE_RATE),
        (torch.from_numpy(wave), SAMPLE_RATE),
        (wave.astype(np.int32) * 65536, SAMPLE_RATE),
        (wave.astype(np.int64), SAMPLE_RATE),
        (wave / 32768, SAMPLE_RATE),
        (torch.from_numpy(wave) / 32768, float(SAMPLE_RATE)),
        [stereo, SAMPLE_RATE],
        (stereo.T, np.int64(SAMPLE_RATE)),
        (torch.from_numpy(stereo / 32768), torch.tensor(SAMPLE_RATE)),
    ]
    for item in items:
        loaded = load_waveform(item)
        assert loaded.dtype == np.int16, item
        np.testing.assert_array_equal(loaded, wave, err_msg=str(item))


def test_channels_are_averaged_and_overs_clipped() -> None:
    left, right = noise(seed=1), noise(seed=2)
    mixed = load_waveform((np.stack([left, right]), SAMPLE_RATE))
    assert np.abs(mixed - (left / 2 + right / 2)).max() <= 0.5
    assert load_waveform((np.array([1.5, -1.5] * 1000), SAMPLE_RATE)).tolist()[:2] == [32767, -32768]
    assert load_waveform((np.full(2000, 255, np.uint8), SAMPLE_RATE))[0] == round(127 / 128 * 32768)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 44_101])
def test_a_stereo_sine_keeps_its_frequency_and_level(tmp_path: Path, rate: int) -> None:
    t = np.arange(rate) / rate  # 1 s
    soundfile.write(tmp_path / "sine.wav", np.stack([0.5 * np.sin(2 * np.pi * 1000 * t)] * 2, 1), rate)
    wave = load_waveform(tmp_path / "sine.wav")
    assert abs(len(wave) - SAMPLE_RATE) <= 1
    middle = wave[4000:12000] / 32768  # half a second: bins of 2 Hz
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(8000)))
    assert np.argmax(spectrum) * 2 == 1000
    assert abs(middle.std() - 0.5 / math.sqrt(2)) < 2e-3


def wav(path: Path, wave: np.ndarray, rate: int = SAMPLE_RATE, **kwargs: Any) -> Path:
    soundfile.write(path, wave, rate, **kwargs)
    return path


def cut(path: Path, lost: int) -> Path:
    path.write_bytes(path.read_bytes()[:-lost])
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def with_nan(wave: np.ndarray) -> np.ndarray:
    out = wave / np.float32(32768)
    out[7] = np.nan
    return out.astype(np.float32)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda d: d / "none.wav", "no such file"),
    "folder": (lambda d: d, "cannot be read"),
    "empty file": (lambda d: text(d / "x.wav", ""), "file is empty"),
    "not audio": (lambda d: text(d / "x.wav", "hello" * 99), "not audio that soundfile can read.*WAV, FLAC.*not M4A"),
    "raw": (lambda d: text(d / "x.raw", "hello" * 99), "not audio"),
    "no frames": (lambda d: wav(d / "x.wav", noise()[:0]), "no samples"),
    "silent": (lambda d: wav(d / "x.wav", noise() * 0), r"silent \(every sample is 0\).*-80 dB"),
    "nearly silent": (lambda d: wav(d / "x.wav", np.sign(noise())), r"silent \(peak at -90 dB"),
    "cut": (lambda d: cut(wav(d / "x.wav", noise()), 1000), "truncated: 1000 bytes"),
    "cut flac": (lambda d: cut(wav(d / "x.flac", noise()), 1000), "truncated|not audio"),
    "cut header": (lambda d: cut(wav(d / "x.wav", noise(0.2)), 6400 + 8), "truncated"),
    "short": (lambda d: wav(d / "x.wav", noise(0.09)), "0.090 s of audio.*at least 0.1 s"),
    "nan": (lambda d: wav(d / "x.wav", with_nan(noise()), subtype="FLOAT"), "1 of 8000 samples are NaN or infinite"),
    "rate": (lambda d: wav(d / "x.wav", noise(), 100), "sample rate of 100 Hz.*4000 to 384000"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_named_and_explained(tmp_path: Path, case: str) -> None:
    make, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(BadItem, match=message) as caught:
        load_waveform(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3, "a clip is a path, a member of an archive or a pair.*not int"),
        ((1, 2, 3), "not tuple"),
        ((SAMPLE_RATE, noise()), r"\(waveform, sample_rate\), in this order"),
        ((noise(), "fast"), "number of hertz, not 'fast'"),
        ((noise(), 0), "sample rate of 0 Hz"),
        ((noise(), -16000), "sample rate of -16000 Hz"),
        ((noise(), float("nan")), "sample rate of nan Hz"),
        ((noise(), 1e9), r"sample rate of 1e\+09 Hz"),
        ((noise()[None, None], SAMPLE_RATE), r"shape \(1, 1, 8000\) and type int16: a waveform is \[n\]"),
        ((noise() * 1j, SAMPLE_RATE), "complex128: samples must be floats"),
        ((np.array(["a"] * 9), SAMPLE_RATE), "samples must be floats"),
        ((noise().astype(np.float32), SAMPLE_RATE), r"a peak of \d+; samples given as floats"),
        ((noise().astype(np.int64) * 99, SAMPLE_RATE), "int64 samples must lie in -32768"),
        ((with_nan(noise()), SAMPLE_RATE), "1 of 8000 samples are NaN"),
        ((np.full(8000, np.inf), SAMPLE_RATE), "8000 of 8000 samples are NaN or infinite"),
        ((noise()[:0], SAMPLE_RATE), "no samples"),
        ((np.zeros((2, 8000)), SAMPLE_RATE), "silent"),
        ((noise(0.05), SAMPLE_RATE), "0.050 s"),
    ],
)
def test_a_bad_pair_is_explained(item: Any, message: str) -> None:
    with pytest.raises(BadItem, match=message):
        load_waveform(item)


def test_a_bad_member_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.wav", wav(tmp_path / "x.wav", noise()).read_bytes()[:-500])
    for name, message in (("x.wav", "truncated: 500 bytes"), ("y.wav", "cannot be read: .*no member y.wav")):
        with pytest.raises(BadItem, match=f"a.zip/{name}: {message}"):
            load_waveform(Member(tmp_path / "a.zip", name))


def test_a_streamed_wav_and_one_with_more_chunks_are_read(tmp_path: Path) -> None:
    """What programs write into a pipe says 0xFFFFFFFF for its length; a chunk before the data may have odd length."""
    wave = noise()
    plain = wav(tmp_path / "x.wav", wave).read_bytes()
    at = plain.index(b"data")
    streamed = plain[:4] + b"\xff" * 4 + plain[8 : at + 4] + b"\xff" * 4 + plain[at + 8 :]
    extra = plain[:at] + b"note" + struct.pack("<I", 3) + b"abc\0" + plain[at:]
    for content in (streamed, extra, plain + b"LIST" + struct.pack("<I", 4) + b"abcd"):
        (tmp_path / "y.wav").write_bytes(content)
        loaded = load_waveform(tmp_path / "y.wav")
        np.testing.assert_array_equal(loaded[: len(wave)], wave)
        assert len(loaded) == len(wave)


def test_an_mp3_and_an_ogg_are_read(tmp_path: Path) -> None:
    for suffix in ("mp3", "ogg"):
        loaded = load_waveform(wav(tmp_path / f"x.{suffix}", noise(1.0)))
        assert abs(len(loaded) - SAMPLE_RATE) < 2000
        assert np.abs(loaded).max() > 1000


# ---- log-mel ----


def log_mel_loop(wave: np.ndarray, n_mels: int, var: bool = False) -> np.ndarray:
    """int16 [n] -> [M, F], frame by frame, band by band."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = [700 * (10 ** (m / 2595) - 1) for m in np.linspace(mel(20.0), mel(7600.0), n_mels + 2)]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = []
    for start in range(0, len(wave) - 512 + 1, 160):
        piece = np.zeros(512)
        piece[56:456] = wave[start + 56 : start + 456] / 32768 * hann
        power = np.abs(np.fft.rfft(piece)) ** 2
        bands = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for k, p in enumerate(power):
                f = k * 16000 / 512
                total += p * max(0.0, min((f - low) / (centre - low), (high - f) / (high - centre)))
            bands.append(math.log(max(total, 1e-7)))
        frames.append(bands)
    out = np.array(frames).T
    out -= out.mean(1, keepdims=True)
    return out / np.sqrt((out**2).mean(1, keepdims=True) + 1e-5) if var else out


@pytest.mark.parametrize("var", [False, True])
def test_log_mel_is_the_plain_loop(var: bool) -> None:
    x = batch(0.2, 0.13, longest=4000)
    frames, mask = LogMel(40, var=var).double()(x)
    assert mask is not None
    for i, n in enumerate(x["length"].tolist()):
        expected = log_mel_loop(x["wave"][i, :n].numpy(), 40, var)
        assert mask[i].sum() == expected.shape[1] == 1 + (n - 512) // 160
        got = frames[i, :, : expected.shape[1]].numpy()
        close(got, expected, rtol=1e-4, atol=1e-4)  # torchaudio's bands are float32
        assert (frames[i, :, expected.shape[1] :] == 0).all()


def test_log_mel_is_torchaudios() -> None:
    x = batch(0.5, 0.5)
    mel = torchaudio.transforms.MelSpectrogram(16000, 512, 400, 160, 20.0, 7600.0, n_mels=80, center=False)
    expected = mel(x["wave"].float() / 32768).clamp(min=1e-7).log()
    frames, mask = LogMel()(x)
    assert mask is None
    close(frames, expected - expected.mean(2, keepdim=True), rtol=1e-4, atol=1e-4)


def test_int16_and_float_waves_give_the_same_frames() -> None:
    x = batch(0.3, 0.2)
    close(LogMel()({**x, "wave": x["wave"] / 32768})[0], LogMel()(x)[0])


@pytest.mark.parametrize("n_mels", [1, 20, 64, 100])
def test_every_band_sees_a_bin(n_mels: int) -> None:
    assert (LogMel(n_mels).bands.max(0).values > 0).all()


def test_bad_sizes() -> None:
    for n_mels in (0, 101):
        with pytest.raises(MultifslError, match=f"n_mels must be 1 to 100, not {n_mels}"):
            LogMel(n_mels)
    with pytest.raises(MultifslError, match="multiple of 8, not 12"):
        Ecapa(channels=12)
    with pytest.raises(MultifslError, match="dim must be at least 1"):
        Ecapa(channels=8, dim=0)


def test_log_mel_stays_float32_under_autocast_and_in_bfloat16_modules() -> None:
    x = batch(0.3, 0.2)
    expected, _ = LogMel()(x)
    with torch.autocast("cpu", torch.bfloat16):
        close(LogMel()(x)[0], expected, rtol=0, atol=0)
    assert LogMel().bfloat16()(x)[0].dtype == torch.float32


def test_very_short_and_absent_clips() -> None:
    """Less than a frame counts as one frame; length 0 is a row that is not there."""
    x = {"wave": batch(0.1)["wave"][:, :300].repeat(2, 1), "length": torch.tensor([300, 0])}
    frames, mask = LogMel()(x)
    assert mask is not None and mask[:, 0].tolist() == [[True], [False]]
    assert frames.isfinite().all()


# ---- masked layers ----


def test_masked_mean() -> None:
    x = torch.randn(2, 3, 7)
    mask = torch.arange(7) < torch.tensor([[[7]], [[4]]])
    close(masked_mean(x, mask)[:, :, 0], torch.stack([x[0].mean(1), x[1, :, :4].mean(1)]))
    close(masked_mean(x, None), x.mean(2, keepdim=True))


def test_conv1d_is_torchs() -> None:
    ours = Conv1d(6, 4, 5, dilation=3).double()
    theirs = nn.Conv1d(6, 4, 5, dilation=3, padding=6).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 20, dtype=torch.float64)
    close(ours(x), theirs(x))


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
@pytest.mark.parametrize("how", ["no mask", "full mask"])
@pytest.mark.parametrize("shape", [(4, 3, 9), (4, 3)])
def test_masked_norm_is_batch_norm_where_all_is_valid(shape: tuple[int, ...], how: str, momentum: float | None) -> None:
    torch.manual_seed(0)
    ours = MaskedBatchNorm1d(3, momentum=momentum).double()
    theirs = nn.BatchNorm1d(3, momentum=momentum).double()
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2), ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    mask = None if how == "no mask" else torch.ones(shape[0], 1, *shape[2:], dtype=torch.bool)
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        upstream = torch.randn(shape, dtype=torch.float64)
        outs = [ours(x, mask), theirs(x)]
        close(outs[0], outs[1])
        got = torch.autograd.grad((outs[0] * upstream).sum(), [x, *ours.parameters()])
        close(got, torch.autograd.grad((outs[1] * upstream).sum(), [x, *theirs.parameters()]))
    close(ours.state_dict(), theirs.state_dict())
    ours.eval(), theirs.eval()
    close(ours(x, mask), theirs(x))


def test_masked_norm_is_batch_norm_over_the_valid_frames_end_to_end() -> None:
    torch.manual_seed(0)
    ours, theirs = MaskedBatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2), ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    counts = [7, 3, 0, 5]
    x = torch.randn(4, 3, 7, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(4, 3, 7, dtype=torch.float64)
    mask = (torch.arange(7) < torch.tensor(counts)[:, None])[:, None]

    def ends(t: Tensor) -> Tensor:
        return torch.cat([row[:, :n] for row, n in zip(t, counts, strict=True)], 1)[None]  # [1, C, 15]

    for training in (True, False):
        ours.train(training), theirs.train(training)
        out, expected = ours(x, mask), theirs(ends(x))
        close(ends(out), expected)
        assert (out.masked_select(~mask) == 0).all()
        got = torch.autograd.grad((out * upstream).sum(), [x, *ours.parameters()])
        want = torch.autograd.grad((expected * ends(upstream)).sum(), [x, *theirs.parameters()])
        close(got, want)
        assert (got[0].masked_select(~mask) == 0).all()
    close(ours.state_dict(), theirs.state_dict())


def test_a_batch_with_padding_may_come_between_one_without_and_its_backward_pass() -> None:
    """As in a step over several tasks, of which some have clips of one length."""
    norm, x = MaskedBatchNorm1d(3), torch.randn(4, 3, requires_grad=True)
    loss = norm(x).square().sum() + norm(x, torch.tensor([[True], [True], [True], [False]])).square().sum()
    loss.backward()
    assert x.grad is not None and norm.num_batches_tracked == 2


@pytest.mark.parametrize("masked", [False, True])
def test_second_order_steps_of_the_norm_are_right_under_vmap(masked: bool) -> None:
    """The trap: the fused gain gives right losses and wrong meta-gradients. The oracle is the loop over tasks."""
    torch.manual_seed(0)
    norm = MaskedBatchNorm1d(3, track_running_stats=False).double()
    params = {k: torch.randn_like(v) for k, v in norm.named_parameters()}
    x = torch.randn(2, 2, 4, 3, 6, dtype=torch.float64)  # [T, support and query, B, C, F]
    mask = (torch.arange(6) < torch.tensor([6, 2, 5, 3])[:, None])[:, None] if masked else None

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(norm, p, (x, mask))
        return out.sin().square().sum()

    def after_step(p: dict[str, Tensor], x: Tensor) -> Tensor:
        g = grad(loss)(p, x[0])
        return loss({k: p[k] - 0.1 * g[k] for k in p}, x[1])

    meta = torch.vmap(grad(after_step), in_dims=(None, 0))(params, x)
    for name, value in meta.items():
        close(value, torch.stack([grad(after_step)(params, t)[name] for t in x]))


def test_meta_gradients_of_the_encoder_are_right_under_vmap() -> None:
    """A second-order step through the whole encoder, over tasks of padded clips, against the loop over tasks."""
    encoder = tiny().double().eval()
    x = batch(0.25, 0.12, 0.2, 0.16)
    tasks = {k: v.view(2, 2, *v.shape[1:]) for k, v in x.items()}
    params = {k: v.detach() for k, v in encoder.named_parameters()}

    def loss(p: dict[str, Tensor], wave: Tensor, length: Tensor) -> Tensor:
        z: Tensor = functional_call(encoder, p, ({"wave": wave, "length": length},))
        return z.sin().sum()

    def after_step(p: dict[str, Tensor], wave: Tensor, length: Tensor) -> Tensor:
        g = grad(loss)(p, wave, length)
        return loss({k: p[k] - 0.01 * g[k] for k in p}, wave, length)

    got = torch.vmap(grad(after_step), in_dims=(None, 0, 0))(params, tasks["wave"], tasks["length"])
    want = [grad(after_step)(params, w, n) for w, n in zip(tasks["wave"], tasks["length"], strict=True)]
    close(got, {k: torch.stack([w[k] for w in want]) for k in params}, rtol=1e-6, atol=1e-9)


# ---- the network's parts as loops ----


def test_squeeze_excitation_is_the_plain_loop() -> None:
    torch.manual_seed(0)
    layer = SqueezeExcite(6).double()
    w1, b1, w2, b2 = (p.detach().numpy() for p in layer.parameters())
    x, counts = torch.randn(2, 6, 5, dtype=torch.float64), [5, 3]
    mask = (torch.arange(5) < torch.tensor(counts)[:, None])[:, None]
    out = layer(x, mask).detach().numpy()
    for clip, count, got in zip(x.numpy(), counts, out, strict=True):
        mean = sum(clip[:, t] for t in range(count)) / count
        factor = 1 / (1 + np.exp(-(w2 @ np.maximum(w1 @ mean + b1, 0) + b2)))
        for t in range(count):
            np.testing.assert_allclose(got[:, t], clip[:, t] * factor, rtol=1e-10)


@pytest.mark.parametrize("counts", [[5, 3], [5, 5]])
def test_attentive_pooling_is_the_plain_loop(counts: list[int]) -> None:
    """Equations 1 to 4 of the paper, with k_c left out: it cancels."""
    torch.manual_seed(0)
    layer = AttentivePooling(4).double()
    h = 2 * torch.randn(2, 4, 5, dtype=torch.float64)
    mask = (torch.arange(5) < torch.tensor(counts)[:, None])[:, None] if min(counts) < 5 else None
    w, b = layer.hidden.weight.detach().numpy()[:, :, 0], layer.hidden.bias
    assert b is not None
    bias, v = b.detach().numpy(), layer.score.weight.detach().numpy()[:, :, 0]
    out = layer(h, mask).detach().numpy()
    for clip, count, got in zip(h.numpy(), counts, out, strict=True):
        mean = np.mean([clip[:, t] for t in range(count)], 0)
        std = np.sqrt(np.mean([(clip[:, t] - mean) ** 2 for t in range(count)], 0) + 1e-5)
        scores = [v @ np.tanh(w @ np.concatenate([clip[:, t], mean, std]) + bias) for t in range(count)]
        for c in range(4):
            attention = np.exp([s[c] for s in scores])
            attention /= attention.sum()
            mu = sum(a * clip[c, t] for t, a in enumerate(attention))
            second = sum(a * clip[c, t] ** 2 for t, a in enumerate(attention))
            np.testing.assert_allclose(got[c], mu, rtol=1e-9)
            np.testing.assert_allclose(got[4 + c], math.sqrt(second - mu**2 + 1e-5), rtol=1e-9)


def test_se_res2_block_is_made_of_torchs_own_layers() -> None:
    """y_1 = x_1, y_2 = K_2(x_2), y_i = K_i(x_i + y_{i-1}), in evaluation mode, from F.conv1d and F.batch_norm."""
    block = tiny().eval().double().blocks[1]
    assert isinstance(block, SERes2Block)
    x = torch.randn(2, 16, 11, dtype=torch.float64)

    def unit(m: Any, x: Tensor, dilation: int = 1) -> Tensor:
        k = m.conv.weight.shape[2]
        y = F.conv1d(x, m.conv.weight, m.conv.bias, padding=dilation * (k // 2), dilation=dilation)
        n = m.norm
        return F.batch_norm(F.relu(y), n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, n.eps)

    parts = unit(block.before, x).chunk(8, 1)
    y = [parts[0], unit(block.res2[0], parts[1], 3)]
    for i in range(2, 8):
        y.append(unit(block.res2[i - 1], parts[i] + y[-1], 3))
    close(block(x, None), x + block.squeeze(unit(block.after, torch.cat(y, 1)), None))


# ---- the encoder ----


def test_the_published_number_of_parameters() -> None:
    """Table 1 of the paper: 6.2 million for C = 512."""
    with torch.device("meta"):
        assert round(sum(p.numel() for p in Ecapa(channels=512).parameters()) / 1e6, 1) == 6.2


@every_kind
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_padding_does_not_change_an_embedding(kind: str, dtype: torch.dtype, atol: float) -> None:
    encoder = tiny(kind).to(dtype).eval()
    seconds = (0.1, 0.33, 0.62)
    together = encoder(batch(*seconds, longest=20000))
    assert together.shape == (3, 12) and together.dtype == dtype
    x = batch(*seconds)
    for i, n in enumerate(x["length"].tolist()):
        alone = encoder({"wave": x["wave"][i : i + 1, :n], "length": x["length"][i : i + 1]})
        close(together[i], alone[0], rtol=0, atol=atol)
        close(encoder({"wave": x["wave"][i : i + 1, :n]}), alone, rtol=0, atol=0)
    assert (together[0] - together[1]).abs().max() > 0.01


@every_kind
@pytest.mark.parametrize("seconds", [(0.3, 0.3, 0.3), (0.3, 0.15, 0.25)])
def test_padding_is_inert_in_training(kind: str, seconds: tuple[float, ...]) -> None:
    """More padding, and a row that is not there, change no embedding, gradient or running statistic."""
    results = []
    for longest, rows in ((0, 3), (9000, 3), (9000, 4)):
        encoder = tiny(kind).double().train()
        x = batch(*seconds, *[0.3] * (rows - 3), longest=longest)
        x["length"][3:] = 0
        z = encoder(x)[:3]
        z.sin().sum().backward()
        results.append((z, {k: p.grad for k, p in encoder.named_parameters()}, dict(encoder.named_buffers())))
    for other in results[1:]:
        close(results[0][0], other[0], rtol=0, atol=1e-9)
        close(results[0][1], other[1], rtol=1e-6, atol=1e-9)
        close(results[0][2], other[2], rtol=1e-9, atol=1e-12)


@every_kind
def test_what_lies_in_padding_is_not_seen(kind: str) -> None:
    encoder = tiny(kind).eval()
    x = batch(0.3, 0.2)
    z = encoder(x)
    x["wave"][1, 3200:] = 12345
    close(encoder(x), z, rtol=0, atol=0)


def test_embed_and_preprocess() -> None:
    encoder = tiny().train()
    x = encoder.preprocess([(noise(s, seed=i), SAMPLE_RATE) for i, s in enumerate((0.3, 0.12, 0.5))])
    assert isinstance(x, dict) and x["wave"].dtype == torch.int16 and x["length"].tolist() == [4800, 1920, 8000]
    assert (x["wave"][1, 1920:] == 0).all() and (x["wave"][1, :1920] == torch.from_numpy(noise(0.12, seed=1))).all()
    z = encoder.embed(x, batch_size=2)
    assert encoder.training and z.shape == (3, encoder.dim)
    close(z, encoder.eval()(x), rtol=0, atol=1e-5)
    assert encoder.embed({k: v[:0] for k, v in x.items()}).shape == (0, 12)
    assert encoder.collate([])["length"].shape == (0,)


def test_the_map_norm_is_batch_norm_over_the_valid_frames() -> None:
    """Torch's own BatchNorm2d on the valid columns alone, laid side by side."""
    torch.manual_seed(0)
    x, counts = torch.randn(3, 5, 4, 7, dtype=torch.float64), (7, 3, 5)
    mask = (torch.arange(7) < torch.tensor(counts)[:, None])[:, None]  # [B, 1, F]
    ours, theirs = MaskedBatchNorm2d(5).double(), nn.BatchNorm2d(5).double()
    for norm in (ours, theirs):
        with torch.no_grad():
            norm.weight.copy_(torch.arange(1.0, 6))
            norm.bias.copy_(torch.arange(5.0))
    columns = torch.cat([row[None, :, :, :n] for row, n in zip(x, counts, strict=True)], 3)  # [1, C, M, all valid]
    expected = theirs(columns)
    found = ours(x, mask)
    close(torch.cat([row[None, :, :, :n] for row, n in zip(found, counts, strict=True)], 3), expected)
    assert (found.masked_select(~mask[:, :, None].expand_as(found)) == 0).all()
    close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    close(ours.eval()(x, None), theirs.eval()(x))


@pytest.mark.parametrize("frames", [1, 2, 7, 8])
def test_a_residual_block_is_made_of_torchs_own_layers(frames: int) -> None:
    """One clip without padding, float64; He et al., figure 2 and equation 2, with a stride and with an even shortcut."""
    torch.manual_seed(0)
    for inputs, outputs, stride in ((4, 6, 2), (4, 4, 1)):
        block = BasicBlock(inputs, outputs, stride).double().eval()
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm1d)]
        x = torch.randn(1, inputs, 5, frames, dtype=torch.float64)
        gains = []
        for norm in norms:
            plain = nn.BatchNorm2d(outputs).double().eval()
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            plain.load_state_dict(norm.state_dict())
            gains.append(plain)
        h = gains[1](
            F.conv2d(F.relu(gains[0](F.conv2d(x, block.conv1.weight, None, stride, 1))), block.conv2.weight, None, 1, 1)
        )
        side = x if block.shortcut is None else gains[2](F.conv2d(x, block.shortcut.weight, None, stride))
        out, mask = block(x, None)
        close(out, F.relu(h + side))
        assert mask is None and out.shape[3] == -(-frames // stride)
    assert halved(None) is None


def test_conv4_over_mel_frames_is_the_papers_network() -> None:
    """One clip, by torch's own layers in the papers' order: convolution, norm, ReLU, pooling; then the mean over time."""
    encoder = tiny("conv4_mel").double().eval()
    x = batch(0.4)
    h = encoder.frontend(x)[0][:, None]
    for conv, norm in zip(encoder.convs, encoder.norms, strict=True):
        plain = nn.BatchNorm2d(6).double().eval()
        plain.load_state_dict(norm.state_dict())
        h = F.max_pool2d(F.relu(plain(F.conv2d(h, conv.weight, None, 1, 1))), 2, ceil_mode=True)
    close(encoder(x), h.mean(3).flatten(1))


def test_resnet34_has_the_published_shape() -> None:
    """Zeinali et al., table 1: 32, 64, 128, 256 channels in 3, 4, 6, 3 blocks; counted by hand, convolution by convolution."""
    with torch.device("meta"):
        encoder = ResNetMel()
    assert encoder.out.in_features == 2 * 256 * 10
    convolutions, before = 9 * 32, 32
    for width, count in ((32, 3), (64, 4), (128, 6), (256, 3)):
        convolutions += 9 * before * width + 9 * width**2 * (2 * count - 1) + (before * width if before != width else 0)
        before = width
    found = sum(p.numel() for name, p in encoder.named_parameters() if p.ndim == 4)
    assert found == convolutions
    for wrong in ((3, 4, 6), 3, (0, 1, 1, 1), "3463"):
        with pytest.raises(MultifslError, match="blocks must be four whole numbers"):
            ResNetMel(blocks=wrong)  # type: ignore[arg-type]


def test_batch_statistics_are_seen_and_attributes_kept() -> None:
    encoder = Ecapa(channels=24, dim=7, n_mels=33)
    assert (encoder.channels, encoder.dim, encoder.n_mels, encoder.modality) == (24, 7, 33, "speech")
    assert encoder.train().uses_batch_statistics and not encoder.eval().uses_batch_statistics
    assert not any("window" in k or "bands" in k for k in encoder.state_dict())


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_forward_and_backward_on_the_meta_device(kind: str, training: bool) -> None:
    """No tensor is made on the CPU by mistake and nothing waits for the device."""
    with torch.device("meta"):
        built_there = KINDS[kind]()
    for encoder in (built_there, KINDS[kind]().to("meta")):
        encoder.train(training)
        x = {k: v.to("meta") for k, v in batch(0.3, 0.2).items()}
        z = encoder(x)
        z.sum().backward()
        assert z.shape == (2, 12) and all(p.grad is not None and p.grad.is_meta for p in encoder.parameters())


@every_kind
@pytest.mark.parametrize("seconds", [(0.3, 0.3, 0.3), (0.3, 0.2, 0.25)])
def test_bfloat16_autocast_trains_and_stays_near(kind: str, seconds: tuple[float, ...]) -> None:
    x = batch(*seconds)
    for training in (True, False):
        encoder = tiny(kind).train(training)
        expected = encoder(x)
        encoder = tiny(kind).train(training)
        with torch.autocast("cpu", torch.bfloat16):
            z = encoder(x)
        z.square().sum().backward()
        assert z.dtype == torch.float32
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
        if not training:  # three clips' batch statistics at the end blow up any difference
            assert F.cosine_similarity(z, expected).min() > 0.999
    z = tiny(kind).bfloat16().eval()(x)
    assert F.cosine_similarity(z, tiny(kind).eval()(x)).min() > 0.99


@every_kind
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    encoder = tiny(kind).double().train()
    encoder(batch(0.3, 0.2, 0.25, 0.3)).sin().sum().backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 1e-8, name


def test_it_learns_tones() -> None:
    """Two classes of tones, 20 steps: the loss falls to a tenth."""
    torch.manual_seed(0)
    encoder, head = Ecapa(channels=16, dim=8, n_mels=24), nn.Linear(8, 2)
    rng = np.random.default_rng(0)
    t = np.arange(4800) / SAMPLE_RATE
    y = torch.arange(16) % 2
    tones = [0.15 * np.sin(2 * np.pi * (500 + 600 * int(k)) * t) * (1 + np.sin(40 * t)) for k in y]
    x = encoder.preprocess([(tone + 0.03 * rng.normal(size=4800), SAMPLE_RATE) for tone in tones])
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(head(encoder(x)), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("suffix", ["ogg", "aiff", "wav", "flac"])
def test_a_clip_cut_in_half_is_refused_in_every_format(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    whole = tmp_path / f"whole.{suffix}"
    soundfile.write(whole, (rng.normal(size=48000) * 0.1).clip(-1, 1), 16000)
    assert len(load_waveform(whole)) == 48000
    half = tmp_path / f"half.{suffix}"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(BadItem, match="half.*(truncated|cannot be read|not audio)"):
        load_waveform(half)
