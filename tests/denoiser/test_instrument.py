"""Sites, processors, probe: bit-exact when unarmed, and everything put back."""

from types import SimpleNamespace

import pytest
import torch
from _tiny import tiny_unconditional, tiny_unet
from diffusers import AutoencoderKL

from aiao_diffusers import LatentData
from aiao_diffusers.denoiser.call import CallInputs
from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.denoiser.processor import AIAOAttnProcessor
from aiao_diffusers.denoiser.sites import Site, attention_modules, trace
from aiao_diffusers.denoiser.trigger import apply_trigger, difference
from aiao_diffusers.errors import SiteError
from aiao_diffusers.mark.key import WatermarkKey
from aiao_diffusers.mark.reading import read_subpath
from aiao_diffusers.mark.subpath import sub_path
from aiao_diffusers.verification import plan_run
from aiao_diffusers.verification.evidence import Evidence, EvidenceReader
from aiao_diffusers.verification.plan import ReadingPlan
from aiao_diffusers.verification.plan_run import Offers, PlanRun


KEY = WatermarkKey(bytes(range(32)), "Demo")


def conditional():
    unet = tiny_unet(cross=8)
    return unet, torch.randn(2, 4, 8, 8), {"encoder_hidden_states": torch.randn(2, 3, 8)}


def unconditional():
    unet = tiny_unconditional(block_out_channels=(16, 32), norm_num_groups=8, attention_head_dim=8).eval()
    return unet, torch.randn(2, 3, 8, 8), {}


@pytest.fixture(params=[conditional, unconditional], ids=["text", "unconditional"])
def model(request):
    return request.param()


def run(unet, x, keywords):
    with torch.no_grad():
        return unet(x, torch.tensor([5, 500]), **keywords).sample


class TestTrigger:
    def test_by_hand(self):
        y = torch.tensor([[[3.0, 4.0]]])  # rms = sqrt(12.5)
        out = apply_trigger(y, torch.tensor([1.0, -1.0]), 2.0)
        assert torch.allclose(out, y + 2 * 12.5**0.5 * torch.tensor([1.0, -1.0]))

    def test_zero_amplitude_changes_no_bit(self):
        y = torch.randn(2, 3, 4)
        assert torch.equal(apply_trigger(y, torch.ones(4), torch.zeros(2)), y)

    def test_difference_by_hand(self):
        clean = torch.ones(1, 2, 2)
        assert torch.allclose(difference(clean + torch.tensor([0.5, -1.0]), clean), torch.tensor([0.5, -1.0]))


class TestSites:
    def test_order_of_execution(self):
        unet, x, keywords = conditional()
        names = [site.name for site in trace(unet, lambda: run(unet, x, keywords))]
        first = [name.split(".")[0] for name in names]
        assert first == sorted(first, key=["down_blocks", "mid_block", "up_blocks"].index)
        assert set(names) == set(attention_modules(unet)) and names != list(attention_modules(unet))

    def test_no_sites(self):
        with pytest.raises(SiteError, match="no attention sites"):
            attention_modules(torch.nn.Linear(2, 2))
        assert attention_modules(AutoencoderKL(norm_num_groups=8, block_out_channels=(8,)))  # has some


class TestProbe:
    def test_unarmed_is_bit_identical(self, model):
        unet, x, keywords = model
        before = run(unet, x, keywords)
        with instrument(unet, list(attention_modules(unet))):
            assert all(isinstance(m.processor, AIAOAttnProcessor) for m in attention_modules(unet).values())
            assert torch.equal(run(unet, x, keywords), before)

    def test_armed_changes_and_is_put_back_after_an_exception(self, model):
        unet, x, keywords = model
        modules = attention_modules(unet)
        before, installed, state = (
            run(unet, x, keywords),
            [m.processor for m in modules.values()],
            list(unet.state_dict()),
        )
        sites = trace(unet, lambda: run(unet, x, keywords))
        mask = torch.from_numpy(KEY.trigger_mask(sites[0].name, sites[0].width_out))
        with pytest.raises(RuntimeError, match="planted"):
            with instrument(unet, [sites[0].name]) as wired, wired.arm({sites[0].name: mask}, 1.0):
                assert not torch.equal(run(unet, x, keywords), before)
                raise RuntimeError("planted")
        assert all(m.processor is p for m, p in zip(modules.values(), installed, strict=True))
        assert list(unet.state_dict()) == state and torch.equal(run(unet, x, keywords), before)

    def test_read_answers_at_every_out_site(self, model):
        unet, x, keywords = model
        sites = trace(unet, lambda: run(unet, x, keywords))
        path = sub_path(sites[:1], sites[-2:])
        with instrument(unet, [s.name for s in sites]) as wired:
            readings = read_subpath(wired, KEY, path, 1.0, CallInputs(x, torch.tensor([5, 500]), keywords))
            silent = read_subpath(wired, KEY, path, 0.0, CallInputs(x, torch.tensor([5, 500]), keywords))
        assert [r.site for r in readings] == [s.name for s in sites[-2:]]
        assert all(r.d.abs().max() > 1e-4 for r in readings)
        assert all(r.d.abs().max() < 1e-4 for r in silent)  # control: no trigger, no response

    def test_nested_is_refused(self, model):
        unet = model[0]
        names = list(attention_modules(unet))
        with instrument(unet, names), pytest.raises(SiteError, match="wrapped already"), instrument(unet, names):
            pass

    def test_keywords_reach_the_inner_processor(self):
        class Listening:
            def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, word=None, **kw):
                self.word = word
                return hidden_states

        unet, x, keywords = conditional()
        inner = Listening()
        unet.set_attn_processor(inner)
        with instrument(unet, list(attention_modules(unet))), torch.no_grad():
            unet(x, 5, **keywords, cross_attention_kwargs={"word": "heard"})
        assert inner.word == "heard"


class TestFirstTrial:
    def test_a_sub_path_is_cut_behind_enough_channels(self):
        ins, outs = (Site("in", 0, 8, 8),), tuple(Site(f"out{i}", i + 1, 640, 640) for i in range(4))
        path = sub_path(ins, outs)
        assert path.until(1024).out_sites == outs[:2] and path.until(1).out_sites == outs[:1]
        assert path.until(10_000) == path and path.until(640).in_sites == ins

    def test_only_the_first_trial_of_a_wide_model_ends_early(self, monkeypatch):
        seen = []
        monkeypatch.setattr(plan_run, "FIRST_CHANNELS", 8)
        unet, x, keywords = conditional()
        sites = trace(unet, lambda: run(unet, x, keywords))
        ins, outs = tuple(sites[:1]), tuple(sites[-3:])
        bank = LatentData(x, keywords)
        record = SimpleNamespace(
            bank=bank, kappa=1.0, pairs=False, factors={}, timesteps=1000, noised=lambda x, noise, t: x + noise
        )
        add = Evidence.add
        monkeypatch.setattr(Evidence, "add", lambda self, path, got: (seen.append(len(got)), add(self, path, got))[1])
        plan = ReadingPlan(trials=2, amplitudes=(1.0,), whiten=False)
        PlanRun(plan, EvidenceReader(KEY, record, ins, outs, 0), unet, Offers()).run()
        assert seen == [1, 3]
