"""What an embedded mark costs and what it gives away: `aiao bench embed`.

Cost: noise predictions, and pictures by CMMD and CLIP-score beside the spread between two seeds of the base. Mark: the rate
over random sub-paths, each in-site alone, and the true patterns under wrong masks. Secrecy: trigger inversion, and blind
detectors on pictures and on weight statistics, trained on one half and tested on the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...denoiser.call import CallInputs
from ...denoiser.instrument import instrument
from ...denoiser.price import measure_price
from ...denoiser.schedule import probe_timesteps
from ...denoiser.setup import placement
from ...errors import ConfigError
from ...files.text import markdown_table
from ...formats.checkpoint import load_denoiser
from ...mark.key import WatermarkKey
from ...mark.reading import read_subpath
from ...mark.record import WatermarkRecord
from ...mark.subpath import SubPath, sub_path
from ...stats.hits import combined_log10_p, count_hits
from ...stats.multiple import clopper_pearson
from ...verification.evidence import key_sites
from ...verification.verify import verify
from ..context import AttackContext, open_data, open_pipe
from ..progress import Progress, log_progress
from ..suite.definition import QualitySpec
from ..suite.marks import iter_marks
from ..suite.quality import clip_embeddings, clip_score, cmmd, generate
from .inversion import nearness


TRIALS = 8  # readings averaged for an in-site alone
PERMUTATIONS = 500
EPOCHS = 20


def bits_under(
    denoiser: nn.Module, key: WatermarkKey, record: WatermarkRecord, cases: Sequence[tuple[WatermarkKey, SubPath]], *,
    trials: int, seed: int,
) -> list[tuple[float, float]]:  # fmt: skip
    """Bit accuracy and log10 p of `key`'s patterns for each `(whose masks, sub-path)`, over `trials` averaged readings."""
    generator, (device, dtype) = torch.Generator().manual_seed(seed), placement(denoiser)
    names = {site.name for _, path in cases for site in (*path.in_sites, *path.out_sites)}
    result = []
    with instrument(denoiser, sorted(names), record.factors) as wired:
        for masks, path in cases:
            rows = record.bank.take(torch.randint(len(record.bank), (trials,), generator=generator))
            noise = torch.randn(rows.latents.shape, generator=generator)
            t = torch.randint(*probe_timesteps(record.timesteps), (trials,), generator=generator)
            sample = record.noised(rows.latents, noise, t).to(device, dtype)
            inputs = CallInputs(sample, record.schedule.level(t).to(device), rows.keywords(device, dtype))
            readings = read_subpath(wired, masks, path, record.kappa, inputs, pairs=record.pairs)
            sites = [count_hits(r.d.double().numpy(), key.response_pattern(r.site, len(r.d))) for r in readings]
            agreeing, channels = sum(s.hits for s in sites), sum(s.channels for s in sites)
            result.append((agreeing / channels, combined_log10_p(sites)))
    return result


def mark(
    denoiser: nn.Module, base: nn.Module, key: WatermarkKey, record: WatermarkRecord, *, wrong: int, seed: int
) -> dict[str, Any]:
    """How well the mark reads, and how little wrong masks call it up."""
    key = record.drawn(key)
    ins, outs = key_sites(denoiser, key, record)
    report = verify(denoiser, key, record=record, trials=200, seed=seed, early_stop=False, amplitudes=(1.0,))
    alone = bits_under(denoiser, key, record, [(key, sub_path([s], outs)) for s in ins], trials=TRIALS, seed=seed)
    strangers = [(key.child(f"wrong/{i}"), sub_path(ins, outs)) for i in range(wrong)]
    leak, null = (bits_under(m, key, record, strangers, trials=1, seed=seed) for m in (denoiser, base))
    return {
        "rate": [report.verification_rate, *(report.verification_rate_ci or ())],
        "bits": report.bit_accuracy,
        "log10_p": report.log10_p,
        "alone": {str(site.order): bits for site, (bits, _) in zip(ins, alone, strict=True)},
        "wrong": _spread(leak),
        "wrong_on_base": _spread(null),
    }


def _spread(readings: Sequence[tuple[float, float]]) -> dict[str, float]:
    bits = np.array([b for b, _ in readings])
    smallest = min(p for _, p in readings)
    return {"n": len(bits), "mean": float(bits.mean()), "sd": float(bits.std(ddof=1)), "smallest_log10_p": smallest}


def compare_pictures(denoiser: nn.Module, context: AttackContext, spec: QualitySpec) -> dict[str, Any]:
    """Pictures of the marked model against the base's; the base's own two seeds are the floor."""
    prompts, first = generate(context.base, context, spec, context.seed + 1)
    if not prompts:
        raise ConfigError("an unconditional model has no CLIP-score: pass --images 0.")
    second = generate(context.base, context, spec, context.seed + 2)[1]
    marked = generate(denoiser, context, spec, context.seed + 3)[1]
    a, b, m = (clip_embeddings(prompts, x, context, spec) for x in (first, second, marked))
    (score_b, error_b), (score_m, error_m) = clip_score(b), clip_score(m)
    blurred = 0.5 * first + 0.5 * F.avg_pool2d(first, 3, 1, 1)
    return {
        "images": spec.images,
        "cmmd_base": cmmd(a["image"], b["image"], paired=True),
        "cmmd_marked": cmmd(m["image"], b["image"], paired=True),
        "cmmd_p": permuted(m["image"], b["image"], context.seed),
        "clip_score": [score_b, error_b, score_m, error_m],
        "detector": detect_pictures(first, marked, context.seed),
        "detector_two_seeds": detect_pictures(first, second, context.seed),
        "detector_blur": detect_pictures(second, blurred, context.seed),
    }


def permuted(x: torch.Tensor, y: torch.Tensor, seed: int) -> float:
    """P of a CMMD as large as that of `x` and `y`, `(N, D)` each, were they of one distribution: by permutation within the
    pairs, for the n-th rows share a prompt."""
    random = torch.Generator().manual_seed(seed)
    found, larger = cmmd(x, y, paired=True), 0
    for _ in range(PERMUTATIONS):
        swapped = torch.rand(len(x), 1, generator=random) < 0.5
        larger += cmmd(torch.where(swapped, y, x), torch.where(swapped, x, y), paired=True) >= found
    return (1 + larger) / (1 + PERMUTATIONS)


def detect_pictures(negative: torch.Tensor, positive: torch.Tensor, seed: int) -> list[float]:
    """Test accuracy of a small convolutional classifier, with its 95% interval.

    The first half of each set, `(N, 3, H, W)`, trains it, the second half tests it: the prompts are other ones.
    """
    half = len(negative) // 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        x = torch.cat([negative[:half], positive[:half]])
        y = torch.arange(len(x)).ge(half).float()
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(model(x[rows])[:, 0], y[rows]).backward()
                optimizer.step()
        model.eval()
        with torch.no_grad():
            right = int((model(negative[half:])[:, 0] < 0).sum() + (model(positive[half:])[:, 0] >= 0).sum())
    total = len(negative) + len(positive) - 2 * half
    return [right / total, *clopper_pearson(right, total)]


def detect_weights(base: nn.Module, marked: nn.Module, seed: int) -> list[float]:
    """The same for a linear classifier on statistics of single weight matrices: half of the layers train, half test."""
    tables = []
    for denoiser in (base, marked):
        matrices = [
            p.detach().flatten(1) for p in denoiser.parameters() if p.ndim >= 2 and min(p.flatten(1).shape) > 1
        ]
        tables.append(torch.stack([statistics_of(matrix) for matrix in matrices]))
    order = torch.randperm(len(tables[0]), generator=torch.Generator().manual_seed(seed))
    train, test = order.chunk(2)
    x, y = (torch.cat([table[rows] for table in tables]) for rows in (train, test))
    mean, scale = x.mean(0), x.std(0)
    x, y = ((part - mean) / scale for part in (x, y))
    wanted = torch.arange(len(x)).ge(len(train)).double() * 2 - 1
    weights = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1).double()], 1), wanted[:, None]).solution
    said = (torch.cat([y, torch.ones(len(y), 1).double()], 1) @ weights)[:, 0] >= 0
    right = int((said == torch.arange(len(y)).ge(len(test))).sum())
    return [right / len(y), *clopper_pearson(right, len(y))]


def statistics_of(matrix: torch.Tensor) -> torch.Tensor:
    """Six numbers of a weight matrix, float64: scale, kurtosis, spread of row norms, share near zero, two of its spectrum."""
    m = matrix.double()
    s = torch.linalg.svdvals(m)
    share = s.square() / s.square().sum()
    z = m / m.std()
    rows = m.norm(dim=1)
    entropy = -(share * share.clamp(min=1e-30).log()).sum() / np.log(len(s))
    return torch.stack(
        [
            m.std().log(),
            z.pow(4).mean().log(),
            rows.std() / rows.mean(),
            (z.abs() < 0.1).double().mean(),
            share[0],
            entropy,
        ]
    )


@dataclass(frozen=True)
class Settings:
    """How much is measured of a marked model.

    Args:
        images (`int`): pictures a set, 0: none. sampling (`int`): denoising steps a picture. wrong (`int`): wrong keys.
        starts, ascent (`int`): of trigger inversion, and its steps.
    """

    images: int = 500
    sampling: int = 20
    wrong: int = 200
    starts: int = 16
    ascent: int = 40


def measure(
    denoiser: nn.Module,
    key: WatermarkKey,
    record: WatermarkRecord,
    context: AttackContext,
    settings: Settings,
    progress: Progress = log_progress,
) -> dict[str, Any]:
    """Everything about one marked model; pictures where `settings.images` is not 0."""
    total, seed = 5 if settings.images else 4, context.seed
    found = nearness(denoiser, key, record, context, starts=settings.starts, steps=settings.ascent)
    inversion = {"cosine": found.cosine, "others": sorted(found.others), "p": found.p}
    progress(1, total, "")
    price = measure_price(context.base, denoiser, context.owner, context.scheduler, samples=1024, seed=seed)
    progress(2, total, "")
    read = mark(denoiser, context.base, key, record, wrong=settings.wrong, seed=seed)
    progress(3, total, "")
    weights = detect_weights(context.base, denoiser, seed)
    progress(4, total, "")
    result: dict[str, Any] = {"price": price, "mark": read, "weights": weights, "inversion": inversion}
    if settings.images:
        spec = QualitySpec(images=settings.images, steps=settings.sampling)
        result["pictures"] = compare_pictures(denoiser, context, spec)
        progress(5, total, "")
    return result


def measure_run(
    suite: str, folder: Path, assets: Path, settings: Settings, progress: Progress = log_progress
) -> dict[str, dict[str, Any]]:
    """`measure` of every mark that a run of a suite made in `folder`, by name and key."""
    results = {}
    for one in iter_marks(suite, folder, assets=assets):
        name, record = f"{one.name}, key {one.number}", WatermarkRecord.load(one.folder)
        progress(0, 1, name)
        results[name] = measure(one.denoiser, one.key, record, one.context, settings, progress)
    return results


def measure_folder(
    folder: Path, key: Path, assets: Path, seed: int, settings: Settings, progress: Progress = log_progress
) -> dict[str, dict[str, Any]]:
    """`measure` of one marked folder, whose clean twin is the example's base."""
    places = (assets.absolute(),)
    pipe = open_pipe("base", places)
    owner, attacker = (open_data(pipe, f"latents/{name}.safetensors", places) for name in ("noto", "twemoji"))
    context = AttackContext(pipe, owner, attacker, seed, assets, places)
    secret, record = WatermarkKey.load(key), WatermarkRecord.load(folder)
    denoiser = load_denoiser(folder, dtype=torch.float32)
    return {"figure": measure(denoiser, secret, record, context, settings, progress)}


def figures(result: dict[str, Any]) -> dict[str, str]:
    """What is shown of one marked model, by its line of the table."""
    price, read, seen = result["price"], result["mark"], result.get("pictures")
    rate, wrong, null, others = read["rate"], read["wrong"], read["wrong_on_base"], result["inversion"]["others"]

    def accuracy(found: Sequence[float]) -> str:
        return f"{found[0]:.3f} (95% CI {found[1]:.3f}-{found[2]:.3f})"

    rows = {
        "noise-prediction MSE over the base's loss": f"{price['ratio']:.4f} +- {price['ratio_ci']:.4f} (n {price['samples']:.0f})",
        "verification rate over random sub-paths": f"{accuracy(rate)}, n 200",
        "bit accuracy, log10 p, all trials": f"{read['bits']:.3f}, {read['log10_p']:.1f}",
        "bit accuracy by in-site alone (order)": ", ".join(f"{n}: {b:.3f}" for n, b in read["alone"].items()),
        "true patterns under wrong masks": f"{wrong['mean']:.3f}, sd {wrong['sd']:.3f}, smallest log10 p {wrong['smallest_log10_p']:.1f} (n {wrong['n']})",
        "the same on the base": f"{null['mean']:.3f}, sd {null['sd']:.3f}, smallest log10 p {null['smallest_log10_p']:.1f}",
        "trigger inversion: nearest mask, abs. cosine; of other keys, median and largest": f"{result['inversion']['cosine']:.3f}; {others[len(others) // 2]:.3f}, {others[-1]:.3f}",
        "share of other keys it comes as near to": f"{result['inversion']['p']:.3f}",
        "detector on weight statistics, base against marked": accuracy(result["weights"]),
    }  # fmt: skip
    if seen is not None:
        b, error_b, m, error_m = seen["clip_score"]
        rows |= {
            "CMMD, marked against base": f"{seen['cmmd_marked']:.2f} (p {seen['cmmd_p']:.3f}), n {seen['images']}",
            "CMMD, two seeds of the base": f"{seen['cmmd_base']:.2f}",
            "CLIP-score, base; marked": f"{b:.4f} +- {1.96 * error_b:.4f}; {m:.4f} +- {1.96 * error_m:.4f}",
            "detector on pictures, base against marked": accuracy(seen["detector"]),
            "control: two seeds of the base": accuracy(seen["detector_two_seeds"]),
            "control: base against base a little blurred": accuracy(seen["detector_blur"]),
        }
    return rows


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The table for people: a line a figure, a column a marked model."""
    columns = [figures(result) for result in results.values()]
    lines = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return markdown_table(("what", *results), lines) + "\n"
