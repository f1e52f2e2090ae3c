"""Function-preserving disguises and the answer to them, on miniatures."""

import copy

import pytest
import torch
from _tiny import run, tiny_unet
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig

from aiao_diffusers import EmbedConfig, LatentData, WatermarkKey, embed, verify
from aiao_diffusers.bench.attacks.disguise import KINDS, disguise
from aiao_diffusers.denoiser.sites import trace_on
from aiao_diffusers.errors import ConfigError, NotTestableError, RecordError
from aiao_diffusers.mark.record import WatermarkRecord
from aiao_diffusers.verification import plan_run
from aiao_diffusers.verification.alignment import Alignment, align
from aiao_diffusers.verification.channel_maps import SiteMap, fit, fit_stream
from aiao_diffusers.verification.evidence import key_sites
from aiao_diffusers.verification.healing import heal_copy
from aiao_diffusers.verification.reference import Reference, observe


KEY = WatermarkKey(bytes(range(32)), "Demo")
ALL = [*KINDS, "permute+flip+rotate+shear"]


def trained(seed=0):
    """A miniature whose norms are not the identity, as after training."""
    unet = tiny_unet(seed)
    with torch.no_grad():
        for p in unet.parameters():
            p += 0.1 * torch.randn(p.shape)
    return unet


def conditional(seed=0, **changes):
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (32, 32),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 12,
            "attention_head_dim": 8,
            "norm_num_groups": 8,
            **changes,
        }
    ).eval()


def data(rows=16, seed=1):
    random = torch.Generator().manual_seed(seed)
    latents, text = torch.randn(rows, 4, 8, 8, generator=random), torch.randn(rows, 5, 12, generator=random)
    return LatentData(latents, {"encoder_hidden_states": text})


class TestDisguise:
    @pytest.mark.parametrize("kind", ALL)
    @pytest.mark.parametrize("linear", [False, True], ids=["conv", "linear"])
    def test_output_stays_and_sites_change(self, kind, linear):
        unet = conditional(use_linear_projection=linear, transformer_layers_per_block=2)
        with torch.no_grad():
            for p in unet.parameters():
                p += 0.05 * torch.randn(p.shape)
        before, shapes = run(unet), {n: p.shape for n, p in unet.state_dict().items()}
        clean = observe(unet, data(), {})
        disguise(unet, kind)
        assert torch.allclose(run(unet), before, atol=1e-5 * before.abs().max().item())
        assert {n: p.shape for n, p in unet.state_dict().items()} == shapes
        after = observe(unet, data(), {})
        moved = [
            not torch.allclose(getattr(after, side)[n], v, rtol=1e-2, atol=1e-2)
            for side in ("leaving", "entering")
            for n, v in getattr(clean, side).items()
        ]
        # Signs and factors may leave the residual stream alone, a shear leaves what LayerNorm gives.
        assert any(moved) if kind in ("flip", "shear") else all(moved)

    def test_arbitrary_signs_on_the_residual_stream_are_no_disguise(self):
        """The control: LayerNorm's mean forbids them, and the check above must see it."""
        from aiao_diffusers.bench.attacks import disguise as module

        def signs(width, random):
            matrix = torch.diag(1.0 - 2 * torch.randint(2, (width,), generator=random).double())
            return module.Change(matrix, matrix, lambda g, b: (matrix @ g, matrix @ b, torch.eye(width).double()))

        unet = trained()
        before = run(unet)
        for block in (m for m in unet.modules() if isinstance(m, module.Transformer2DModel)):
            with torch.no_grad():
                module._apply(block, signs(block.inner_dim, torch.Generator().manual_seed(0)))
        assert not torch.allclose(run(unet), before, atol=1e-3 * before.abs().max().item())

    def test_refusals_change_nothing(self):
        unet = trained()
        state = {n: p.clone() for n, p in unet.state_dict().items()}
        with pytest.raises(ConfigError, match="invert"):
            disguise(unet, "permute+invert")
        with pytest.raises(ConfigError, match="Transformer2DModel"):
            disguise(torch.nn.Linear(2, 2), "permute")
        assert all(torch.equal(p, state[n]) for n, p in unet.state_dict().items())
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
        with pytest.raises(ConfigError, match="unload adapters"):
            disguise(unet, "permute")


class TestFit:
    """Known maps come back, and the simpler kind wins where it is true."""

    def activations(self, width=12):
        return torch.randn(32, 6, width, generator=torch.Generator().manual_seed(0)).double()

    def test_signed_permutation_with_factors(self):
        x = self.activations()
        order, factor = torch.randperm(12), torch.tensor([2.0, -0.5] * 6).double()
        found = fit(x, x[..., order] * factor + 3 + 0.05 * torch.randn(x.shape))
        wanted = torch.diag(factor) @ torch.eye(12, dtype=torch.float64)[order]
        assert found.kind == "permutation" and torch.allclose(found.matrix, wanted, atol=0.05)
        assert torch.allclose(found.offset, torch.full((12,), 3.0).double(), atol=0.05)
        assert found.error < 0.02

    def test_rotation(self):
        x = self.activations()
        turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
        found = fit(x, 2 * x @ turn.T + 1)
        assert found.kind == "rotation" and torch.allclose(found.matrix, 2 * turn, atol=1e-6) and found.error < 1e-9

    def test_rotation_behind_factors(self):
        x = self.activations()
        turn, factor = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q, 0.5 + torch.rand(12).double()
        found = fit(x * torch.arange(1, 13) ** 0.5 / factor, (x * torch.arange(1, 13) ** 0.5) @ turn.T, scaled=True)
        assert found.kind == "scaled rotation" and found.error < 0.02
        assert fit(x / factor, x @ turn.T).error > found.error  # the control: without factors

    def test_stream_with_a_functional_added_to_all_channels(self):
        x = self.activations()
        basis = torch.linalg.qr(torch.cat([torch.ones(12, 1), torch.randn(12, 11)], 1).double()).Q
        turn = basis @ torch.block_diag(torch.ones(1, 1), torch.linalg.qr(torch.randn(11, 11)).Q).double() @ basis.T
        v = torch.randn(12).double()
        shear = torch.eye(12).double() + 8 * (v - v.mean())[None, :]
        found = fit_stream(x, x @ (shear @ turn).T + 1)
        mask = torch.tensor([1.0, -1] * 6).double()
        assert torch.allclose(found.matrix @ mask, shear @ turn @ mask, rtol=1e-3, atol=1e-3)

    def test_unrelated(self):
        x = self.activations()
        assert fit(x, torch.randn(32, 6, 12, generator=torch.Generator().manual_seed(1))).error > 0.9

    @pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 4, 4)], ids=["tokens", "map"])
    def test_alignment_applies_its_maps(self, shape):
        matrix = torch.tensor([[0.0, 2, 0], [1, 0, 0], [0, 0, -1]]).double()
        site = SiteMap("permutation", matrix, torch.tensor([0.0, 0, 5]).double(), 0.0)
        aligned = Alignment({"a": site}, {"b": site}, {"a": 0.5})
        assert aligned.mask("a", torch.tensor([1, -1, 1], dtype=torch.int8)).tolist() == [-1.0, 0.5, -0.5]
        hidden = torch.randn(shape)
        axis = 2 if len(shape) == 3 else 1
        a, b, c = hidden.unbind(axis)
        assert torch.allclose(aligned.hidden("b", hidden), torch.stack([2 * b, a, 5 - c], axis))


class TestReference:
    def test_round_trip(self, tmp_path):
        made = observe(trained(), data(), {})
        again = Reference.load(made.save(tmp_path / "r.safetensors"))
        assert again.sha256 == made.sha256 and set(again.leaving) == set(made.leaving)
        assert observe(trained(1), data(), {}).sha256 != made.sha256  # another teacher

    def test_not_a_reference(self, tmp_path):
        data().save(tmp_path / "latents.safetensors")
        with pytest.raises(RecordError, match="no alignment reference"):
            Reference.load(tmp_path / "latents.safetensors")

    def test_other_architecture_is_not_testable(self):
        unet, made = conditional(), observe(trained(), data(), {})
        sites = trace_on(unet, data())
        with pytest.raises(NotTestableError, match="width"):
            align(made, unet, sites[:1], sites[-1:])
        with pytest.raises(NotTestableError, match="another architecture"):
            align(made, unet, sites[-1:], sites[:1])


@pytest.fixture(scope="module")
def marked():
    """A miniature teacher, the same marked, and what embedding returned."""
    unet = conditional(layers_per_block=2)
    teacher = copy.deepcopy(unet)
    fields = {"steps": 80, "lr": 2e-3, "batch_size": 4, "in_sites": 2, "out_sites": 4, "bank_size": 8}
    config = EmbedConfig(**fields, response=1.0, eps=1.0, dec=2.0, corr=2.0, anchor=0.0, max_price=None)
    report = embed(unet, KEY, data(), config, scheduler=DDPMScheduler())
    return teacher, unet, report


@pytest.mark.slow
class TestVerify:
    # Rotations are for tests/integration: embedding moves a random miniature's activations too far for them.
    @pytest.mark.parametrize("kind", ["permute", "permute+flip"])
    def test_disguised_is_verified_by_alignment_alone(self, marked, kind):
        teacher, unet, report = marked
        suspect = disguise(copy.deepcopy(unet), kind)
        plain = verify(suspect, KEY, record=report.record)
        assert plain.verdict == "not_verified" and any("alignment looks" in text for text in plain.warnings)
        seen = verify(suspect, KEY, record=report.record, reference=report.reference)
        assert seen.verdict == "verified" and seen.log10_p < -8, (seen.log10_p, seen.looks[-1])
        assert seen.looks[-1]["label"].startswith("aligned") and not seen.warnings

    def test_plain_verdict_costs_the_same_with_a_reference(self, marked):
        _, unet, report = marked
        alone = verify(unet, KEY, record=report.record)
        assert alone.verdict == "verified"
        seen = verify(unet, KEY, record=report.record, reference=report.reference)
        assert len(seen.plan["looks"]) == len(alone.plan["looks"]) + 7  # planned, not taken
        assert {**seen.to_dict(), "plan": None} == {**alone.to_dict(), "plan": None}

    @pytest.mark.parametrize("kind", ["permute+flip", "rotate+flip+shear"])
    def test_controls(self, marked, kind):
        teacher, unet, report = marked
        base, random = disguise(copy.deepcopy(teacher), kind), disguise(conditional(5, layers_per_block=2), kind)
        questions = [(base, KEY), (random, KEY), (disguise(copy.deepcopy(unet), kind), KEY.child("wrong"))]
        for suspect, key in questions:
            seen = verify(suspect, key, record=report.record, reference=report.reference)
            assert seen.verdict == "not_verified" and seen.log10_p > -5
            wanted = [f"aligned x{x}{by}" for x in (1, 2, 4) for by in ("", ", ranks")]
            wanted.insert(2, "aligned x1, whitened")
            assert [look["label"] for look in seen.looks[-7:]] == wanted

    def test_reference_is_bound_by_the_record(self, marked):
        teacher, unet, report = marked
        assert report.record.reference_sha256 == report.reference.sha256
        suspect = disguise(copy.deepcopy(unet), "permute")
        assert verify(suspect, KEY, record=report.record, reference=teacher).verified  # the twin serves as well
        with pytest.raises(RecordError, match="another clean twin"):
            verify(suspect, KEY, record=report.record, reference=unet)
        with pytest.raises(RecordError, match="another reference"):
            verify(suspect, KEY, record=report.record, reference=observe(unet, data(), {}))

    def test_the_clean_base_is_asked_through_the_same_reference(self, marked):
        teacher, unet, report = marked
        suspect = disguise(copy.deepcopy(unet), "permute")
        seen = verify(suspect, KEY, record=report.record, reference=teacher, controls={"clean twin": teacher})
        assert seen.verified and seen.controls["clean twin"]["verdict"] == "not_verified"

    def test_records_of_before(self, marked, tmp_path):
        teacher, unet, report = marked
        report.record.save(tmp_path)
        path = tmp_path / "aiao" / "watermark.json"
        path.write_text(
            "".join(line for line in path.open() if "teacher_sha" not in line and "reference_sha" not in line)
        )
        old = WatermarkRecord.load(tmp_path)
        assert old.teacher_sha256 is None and verify(unet, KEY, record=old).verified
        seen = verify(disguise(copy.deepcopy(unet), "permute"), KEY, record=old, reference=report.reference)
        assert seen.verified and any("names no reference" in text for text in seen.warnings)

    def test_no_site_map_depends_on_the_key(self, marked):
        teacher, unet, report = marked
        suspect = disguise(copy.deepcopy(unet), "rotate")
        ins, outs = key_sites(suspect, KEY, report.record)
        before = align(report.reference, suspect, ins, outs)
        # Another key's sites as well: maps of sites in common must not move by a bit.
        every = trace_on(suspect, data())
        wide = align(
            report.reference,
            suspect,
            [s for s in every if s.name in report.reference.leaving],
            [s for s in every if s.name in report.reference.entering],
        )
        assert all(torch.equal(wide.ins[n].matrix, m.matrix) for n, m in before.ins.items())
        assert all(torch.equal(wide.outs[n].matrix, m.matrix) for n, m in before.outs.items())


@pytest.mark.slow
class TestHealing:
    def test_looks_of_an_unmarked_model_stay_null_and_its_weights_untouched(self, marked, monkeypatch):
        monkeypatch.setattr(plan_run, "STEPS", 15)
        teacher, _, report = marked
        suspect = disguise(copy.deepcopy(teacher), "permute")
        state = {n: p.clone() for n, p in suspect.state_dict().items()}
        seen = verify(suspect, KEY, record=report.record, reference=report.reference, healing=data())
        assert seen.verdict == "not_verified" and seen.log10_p > -5
        labels = [look["label"].split(" x")[0] for look in seen.looks]
        assert labels[-21:] == ["aligned"] * 7 + ["healed"] * 7 + ["healed, aligned"] * 7
        assert all(torch.equal(p, state[n]) for n, p in suspect.state_dict().items())
        assert not suspect.training

    def test_copy_learns(self):
        unet = conditional()
        rows = data(4)
        before, after = unet, heal_copy(unet, rows, DDPMScheduler(), steps=40)

        def loss(model):
            random = torch.Generator().manual_seed(3)
            noise = torch.randn(rows.latents.shape, generator=random)
            t = torch.full((4,), 500)
            noised = DDPMScheduler().add_noise(rows.latents, noise, t)
            with torch.no_grad():
                return (model(noised, t, **rows.keywords()).sample - noise).square().mean().item()

        assert loss(after) < loss(before)
