"""A sub-path, and where it may be cut."""

from aiao_diffusers.denoiser.sites import Site
from aiao_diffusers.mark.subpath import sub_path


class TestFirstTrial:
    def test_a_sub_path_is_cut_behind_enough_channels(self):
        ins, outs = (Site("in", 0, 8, 8),), tuple(Site(f"out{i}", i + 1, 640, 640) for i in range(4))
        path = sub_path(ins, outs)
        assert path.until(1024).out_sites == outs[:2] and path.until(1).out_sites == outs[:1]
        assert path.until(10_000) == path and path.until(640).in_sites == ins
