"""Hostile files: every format of the table, mutated at random under a seed, and what the loaders make of it.

What must hold in each round: one of our errors, or a load that really changed what it says and undid it; under `SECONDS`
of processor time and `HANG_SECONDS` by the clock, which a busy machine stretches; memory within the file's size and `MARGIN_MIB`; and no file opened for writing outside the round's own folder. Anything
else ends the run with the round's number, which a second run with the same seed reaches again.
"""

import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load, save
from torch import nn

from ...denoiser.hashes import tensor_sha256
from ...errors import AIAOError
from ...files.peak import Peak
from ...files.safetensors_header import check_finite
from ...files.text import markdown_table
from ...formats.checkpoint import load_denoiser
from ...formats.detect import detect
from ...formats.lora import apply_lora
from ..progress import Progress, log_progress
from .format_files import Change, Format, in_files


SECONDS = 5.0
HANG_SECONDS = 60.0
MARGIN_MIB = 64.0
WORDS = [
    *(
        b"lora_down",
        b"lora_up",
        b"lora_A",
        b"lora_B",
        b"lora_mid",
        b"hada_w1_a",
        b"lokr_w1",
        b"lokr_w2_b",
        b"dora_scale",
        b"oft_blocks",
        b"oft_R",
        b"boft_R",
        b"glora_A.Xd",
        b"vera_lambda_b",
        b"diff_b",
        b"text_encoders.clip_l.",
        b"_orig_mod.",
        b"[0-9]+|",
    ),
    *(b"diff", b"alpha", b"lora_unet_", b"unet.", b"base_model.model.", b"model.diffusion_model.", b"scale_weight"),
    *(b"F32", b"F16", b"BF16", b"F8_E4M3", b"I64", b"U8", b"BOOL", b"shape", b"data_offsets", b"[0,", b"null", b"-1"),
    *(b"9999999999", b"1e999", b"NaN", b"{}", b"[]", b"../", b"LORA", b"LOKR", b"weight_map", b"_class_name", b"true"),
]
CASTS = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.int8, torch.int32, torch.bool]
OUTCOMES = {"loaded", "UnsafeFileError", "LoraNotLoadedError", "NotTestableError", "WrongBaseError", "SuspectError"}
"""A fuzz that never reaches one of these tests less than it says."""


class FuzzFailure(AssertionError):
    """A round broke a promise; the message names the round, the seed and the promise."""


@dataclass
class Result:
    """What the rounds came to; `slowest_s` in processor seconds, `most_mib` above the file's size."""

    rounds: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    most_mib: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; outcomes from the most frequent to the rarest."""
        return {
            "rounds": self.rounds,
            "formats": len(self.formats),
            "outcomes": dict(self.outcomes.most_common()),
            "slowest_s": round(self.slowest_s, 3),
            "most_mib_above_file": round(self.most_mib, 1),
        }

    def markdown(self) -> str:
        """For people."""
        counts = markdown_table(("outcome", "rounds"), ((name, str(n)) for name, n in self.outcomes.most_common()))
        told = (
            f"{self.rounds} rounds over {len(self.formats)} formats kept every promise; slowest {self.slowest_s:.2f} s"
        )
        return f"{counts}\n\n{told}, most memory above a file's size {self.most_mib:.1f} MiB.\n"


def small_unet(seed: int = 0) -> nn.Module:
    """About 50k parameters, two levels, so that every kind of block name occurs."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def small_change(base: nn.Module) -> Change:
    """Attention and convolution, ranks 2 and 3."""
    generator, factors = torch.Generator().manual_seed(1), {}
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    for rank, module in ((2, attention), (3, "down_blocks.0.resnets.0.conv1")):
        out, inner, *kernel = Change(base, {}).weight(module).shape
        down = torch.randn(rank, inner, *kernel, generator=generator) * 0.3
        factors[module] = (down, torch.randn(out, rank, *[1] * len(kernel), generator=generator) * 0.3)
    return Change(base, factors)


def mutate(data: bytes, is_header_file: bool, random_: random.Random) -> bytes:
    """A few random edits, seven of ten in the header of a safetensors file."""
    buffer = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 5))):
        if len(buffer) < 9:
            return bytes(buffer)
        header = len(buffer)
        if is_header_file:
            header = min(len(buffer), max(9, 8 + struct.unpack("<Q", buffer[:8])[0]))
        at = random_.randrange(8, header) if random_.random() < 0.7 else random_.randrange(len(buffer))
        match random_.randrange(8):
            case 0:
                buffer[at] = random_.randrange(256)
            case 1:
                buffer[at] = random_.choice(b'0123456789,:[]{}"._AB')
            case 2:
                del buffer[random_.randrange(len(buffer)) :]
            case 3:
                buffer[at:at] = random_.randbytes(random_.randrange(1, 16))
            case 4:
                old, new = random_.choice(WORDS), random_.choice(WORDS)
                # Padded where it can be, so that the header's length stays true and the edit reaches deeper checks.
                new = new.ljust(len(old), b" ") if random_.random() < 0.5 else new
                buffer = bytearray(bytes(buffer).replace(old, new, random_.choice((1, 1, -1))))
                if is_header_file and random_.random() < 0.7 and len(buffer) > 8:
                    buffer[:8] = struct.pack("<Q", max(0, header - 8 + len(buffer) - len(data)))
            case 5:
                buffer[0:8] = struct.pack("<Q", random_.choice((0, 1, 2**31, 2**63, header - 9, header - 7)))
            case 6:
                end = min(len(buffer), at + random_.randrange(1, 64))
                buffer[at:at] = buffer[at:end]
            case 7:
                value = random_.choice((float("nan"), float("inf"), 1e38, 1e-40, 0.0))
                buffer[max(0, len(buffer) - 8) :] = struct.pack("<2f", value, value)
    return bytes(buffer)


def rewrite(data: bytes, random_: random.Random) -> bytes:
    """A sound safetensors file that says something else: keys, shapes, dtypes or values changed, dropped or doubled."""
    state = load(data)
    for _ in range(random_.choice((1, 1, 3))):
        if not state:
            break
        key = random_.choice(sorted(state))
        value = state[key]
        match random_.randrange(8):
            case 0:
                del state[key]
            case 1 | 2:
                old, new = random_.choice(WORDS).decode(), random_.choice(WORDS).decode()
                state = {k.replace(old, new): v for k, v in state.items()}
            case 3:
                state[key + random_.choice((".alpha", ".dora_scale", "x", ".diff", ".scale_weight"))] = value.clone()
            case 4:
                state[key] = value.to(random_.choice(CASTS))
            case 5:
                flat = value.flatten()
                shapes = (
                    value.T if value.dim() == 2 else flat,
                    value.unsqueeze(0),
                    flat[:1],
                    flat[:0],
                    value[None, None],
                )
                state[key] = random_.choice(shapes)
            case 6:
                state[key] = torch.full_like(
                    value.float(), random_.choice((float("nan"), float("inf"), 3e38, 1e-40, 0))
                )
            case 7:
                other = random_.choice(sorted(state))
                state[key], state[other] = state[other].clone(), value.clone()
    return save({k: v.contiguous().clone() for k, v in state.items()}, {"format": "pt"})


class _Writes:
    """Watch every file opened for writing; an audit hook cannot be taken off again, so it is gated."""

    def __init__(self) -> None:
        self.allowed: str | None = None
        self.outside: list[str] = []
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.allowed is None or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.symlink"):
            return
        if event == "os.remove" and args[1] != -1:
            return  # a name within a folder that is open already: a temporary folder being emptied
        writes = event != "open" or (isinstance(args[1], str) and set(args[1]) & set("wax+"))
        path = args[0]
        if writes and isinstance(path, str | bytes) and not str(path).startswith((self.allowed, "/dev/", "/proc/")):
            self.outside.append(f"{event} {path!r}")


def _try(source: Path, weight_name: str | None, base: nn.Module, before: str) -> str:
    """One round's questions; the outcome by name."""
    original = {name: value.clone() for name, value in base.state_dict().items()}
    outcome = "nothing"
    try:
        detect(source, weight_name)
        with apply_lora(base, source, weight_name=weight_name) as loaded:
            moved = sum(float((v - original[k]).double().square().sum()) for k, v in base.state_dict().items()) ** 0.5
            if loaded.modules < 1 or not abs(moved - loaded.delta_norm) <= 1e-4 * moved:
                raise FuzzFailure(f"says {loaded.modules} modules and a change of {loaded.delta_norm}, moved {moved}")
        outcome = "loaded"
    except AIAOError as error:
        outcome = type(error).__name__
    if tensor_sha256(base) != before:
        raise FuzzFailure("the denoiser was not put back bit for bit")
    try:
        model = load_denoiser(source, base=base, dtype=torch.float32)
        check_finite(model.state_dict())
        outcome = "loaded whole"
    except AIAOError as error:
        outcome = type(error).__name__ if outcome == "SuspectError" else outcome
    if tensor_sha256(base) != before:
        raise FuzzFailure("loading a whole model changed the base")
    return outcome


@contextmanager
def _scratch() -> Iterator[Path]:
    held = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = held


def fuzz(rounds: int, seed: int = 2026, start: int = 0, progress: Progress = log_progress) -> Result:
    """Run mutated files of all formats through the loaders.

    Args:
        rounds: how many files. seed: of formats and edits. progress: told of every hundredth round.
        start: rounds to make and pass over, so that a failure can be met again and a long run cut in parts.
    Returns:
        `Result`.
    Raises:
        FuzzFailure: a promise of this module's docstring was broken. Whatever a loader raises that is not ours.
    """
    base = small_unet()
    change, result = small_change(base), Result()
    # Seeds of the generator are independent of PYTHONHASHSEED and of the formats' number of files.
    random_, watch = random.Random(seed), _Watch(base, seed)
    formats = in_files()
    with _scratch() as root:
        sources = []
        for number, fmt in enumerate(formats):
            good = root / f"good{number}"
            good.mkdir()
            sources.append(fmt.write(change, good).relative_to(good))
        for number in range(start + rounds):
            chosen = random_.randrange(len(formats))
            good, place = root / f"good{chosen}", root / "round"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(good, place)
            size, victim = _spoil(place, random_)
            if number < start:
                continue
            case = _Case(number, place / sources[chosen], formats[chosen], victim, size)
            watch.run(case, root, result)
            if (number + 1 - start) % 100 == 0:
                progress(number + 1 - start, rounds, "")
    return result


def _spoil(place: Path, random_: random.Random) -> tuple[float, Path]:
    """Edit one file of `place`; the size of all of them in MiB, and the victim's name within."""
    files = sorted(p for p in place.rglob("*") if p.is_file())
    victim = random_.choice(files)
    data = victim.read_bytes()
    tensors = victim.suffix == ".safetensors" and data[8:9] == b"{"  # a page of a failed download has that name too
    sound = tensors and random_.random() < 0.5
    victim.write_bytes(rewrite(data, random_) if sound else mutate(data, tensors, random_))
    return sum(p.stat().st_size for p in files) / 2**20, victim.relative_to(place)


@dataclass(frozen=True)
class _Case:
    """One round: what is loaded, the file of it that was edited, and the size of all files in MiB."""

    number: int
    source: Path
    format: Format
    victim: Path
    size: float


class _Watch:
    """Runs rounds against one denoiser and holds each to the promises."""

    def __init__(self, base: nn.Module, seed: int) -> None:
        self.base, self.before, self.seed, self.writes = base, tensor_sha256(base), seed, _Writes()

    def run(self, case: _Case, root: Path, result: Result) -> None:
        """One round, added to `result`."""
        where = f"round {case.number} of seed {self.seed}: {case.format.name}"
        peak, started, spent = Peak(), time.perf_counter(), time.process_time()
        try:
            self.writes.allowed = str(root)
            with peak.measured(trim=False):
                outcome = _try(case.source, case.format.weight_name, self.base, self.before)
        except BaseException as error:
            error.add_note(f"{where}, {case.victim}")
            raise
        finally:
            self.writes.allowed = None
        seconds, above = time.process_time() - spent, (peak.mib or 0.0) - case.size
        hung = time.perf_counter() - started > HANG_SECONDS
        if self.writes.outside or hung or seconds > SECONDS or above > MARGIN_MIB:
            raise FuzzFailure(f"{where}: {seconds:.1f} s, {above:.0f} MiB above its size, wrote {self.writes.outside}")
        result.rounds += 1
        result.outcomes[outcome] += 1
        result.formats[case.format.name] += 1
        result.slowest_s, result.most_mib = max(result.slowest_s, seconds), max(result.most_mib, above)
