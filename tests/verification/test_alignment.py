"""Function-preserving disguises and the answer to them, on miniatures."""

import copy

import pytest
import torch
from _disguises import as_trained, conditional, latents

from aiao_diffusers import WatermarkKey, verify
from aiao_diffusers.bench.attacks.disguise import disguise
from aiao_diffusers.denoiser.sites import trace_on
from aiao_diffusers.errors import NotTestableError
from aiao_diffusers.verification.alignment import Alignment, align
from aiao_diffusers.verification.channel_maps import SiteMap
from aiao_diffusers.verification.evidence import key_sites
from aiao_diffusers.verification.reference import observe


KEY = WatermarkKey(bytes(range(32)), "Demo")


class TestFit:
    """Known maps come back, and the simpler kind wins where it is true."""

    def activations(self, width=12):
        return torch.randn(32, 6, width, generator=torch.Generator().manual_seed(0)).double()

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
    def test_other_architecture_is_not_testable(self):
        unet, made = conditional(), observe(as_trained(), latents(), {})
        sites = trace_on(unet, latents())
        with pytest.raises(NotTestableError, match="width"):
            align(made, unet, sites[:1], sites[-1:])
        with pytest.raises(NotTestableError, match="another architecture"):
            align(made, unet, sites[-1:], sites[:1])


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
        assert seen.looks[-1]["label"].startswith("aligned")
        assert len(seen.warnings) == 1 and "only through the clean twin or the reference" in seen.warnings[0]

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

    def test_the_clean_base_is_asked_through_the_same_reference(self, marked):
        teacher, unet, report = marked
        suspect = disguise(copy.deepcopy(unet), "permute")
        seen = verify(suspect, KEY, record=report.record, reference=teacher, controls={"clean twin": teacher})
        assert seen.verified and seen.controls["clean twin"]["verdict"] == "not_verified"

    def test_no_site_map_depends_on_the_key(self, marked):
        teacher, unet, report = marked
        suspect = disguise(copy.deepcopy(unet), "rotate")
        ins, outs = key_sites(suspect, KEY, report.record)
        before = align(report.reference, suspect, ins, outs)
        # Another key's sites as well: maps of sites in common must not move by a bit.
        every = trace_on(suspect, latents())
        wide = align(
            report.reference,
            suspect,
            [s for s in every if s.name in report.reference.leaving],
            [s for s in every if s.name in report.reference.entering],
        )
        assert all(torch.equal(wide.ins[n].matrix, m.matrix) for n, m in before.ins.items())
        assert all(torch.equal(wide.outs[n].matrix, m.matrix) for n, m in before.outs.items())
