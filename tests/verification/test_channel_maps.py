"""Known maps come back, and the simpler kind wins where it is true."""

import torch

from aiao_diffusers.verification.channel_maps import fit, fit_stream


class TestFit:
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
