"""One sub-path read at every out-site, with masks for all out-sites or for each."""

import torch
from _tiny import predict

from aiao_diffusers import WatermarkKey
from aiao_diffusers.denoiser.call import CallInputs
from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.denoiser.sites import trace
from aiao_diffusers.mark.reading import read_subpath
from aiao_diffusers.mark.subpath import sub_path
from aiao_diffusers.verification.evidence import key_sites


KEY = WatermarkKey(bytes(range(32)), "Demo")


def test_each_out_site_is_read_under_its_own_masks(begun):
    unet, record = begun
    ins, outs = key_sites(unet, KEY, record)
    sample, t = record.bank.latents[:1], torch.tensor([300])
    with instrument(unet, [site.name for site in (*ins, *outs)]) as instrumented:
        found = read_subpath(instrumented, KEY, sub_path(ins, outs), 1.0, CallInputs(sample, t, {}), pairs=True)
        assert [reading.site for reading in found] == [site.name for site in outs]
        for reading, out in zip(found, outs, strict=True):
            rows = {s.name: torch.from_numpy(KEY.trigger_mask(s.name, s.width_out, out.name))[None] for s in ins}
            alone = instrumented.responses(rows, [out], 1.0, CallInputs(sample, t, {}))
            assert torch.allclose(reading.d, alone[out.name][0], atol=1e-5)
        shared = read_subpath(instrumented, KEY, sub_path(ins, outs), 1.0, CallInputs(sample, t, {}))
        assert not any(torch.allclose(a.d, b.d, atol=1e-3) for a, b in zip(found, shared, strict=True))


class TestShared:
    def test_read_answers_at_every_out_site(self, model):
        unet, x, keywords = model
        sites = trace(unet, lambda: predict(unet, x, keywords))
        path = sub_path(sites[:1], sites[-2:])
        with instrument(unet, [s.name for s in sites]) as instrumented:
            readings = read_subpath(instrumented, KEY, path, 1.0, CallInputs(x, torch.tensor([5, 500]), keywords))
            silent = read_subpath(instrumented, KEY, path, 0.0, CallInputs(x, torch.tensor([5, 500]), keywords))
        assert [r.site for r in readings] == [s.name for s in sites[-2:]]
        assert all(r.d.abs().max() > 1e-4 for r in readings)
        assert all(r.d.abs().max() < 1e-4 for r in silent)  # control: no trigger, no response
