"""Layer profiles: changes computed by hand, every loader, the file format, and the self-profile."""

import pytest
import torch
from _tiny import factors, learner, patch, scaled, tiny_unet, write

from aiao_diffusers import LayerProfile, profile, self_profile
from aiao_diffusers.errors import ConfigError, DataError, WrongBaseError


CONV, LINEAR = "mid_block.resnets.0.conv1", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def by_name(found: LayerProfile) -> dict:
    return {layer.name: layer for layer in found.layers}


class TestProfile:
    def test_change_by_hand_and_its_average(self):
        found = by_name(profile(tiny_unet(), [scaled(CONV, 1.25), scaled(CONV, 1.75)], scaled(LINEAR, 1.5)))
        assert found[CONV].change == pytest.approx((0.25 + 0.75 + 0) / 3, rel=1e-5)
        assert found[CONV].spread == pytest.approx(torch.tensor([0.25, 0.75, 0.0]).std().item(), rel=1e-5)
        assert found[LINEAR].change == pytest.approx(0.5 / 3, rel=1e-5)
        assert sum(layer.change > 0 for layer in found.values()) == 2
        assert sum(layer.parameters for layer in found.values()) == sum(p.numel() for p in tiny_unet().parameters())

    def test_the_callback_counts_the_fine_tunes(self):
        counted = []
        tuned = [scaled(CONV, 1.25), scaled(CONV, 1.75)]
        profile(tiny_unet(), tuned, scaled(LINEAR, 1.5), callback=lambda *count: counted.append(count))
        assert counted == [(1, 3), (2, 3), (3, 3)]

    def test_depth_puts_the_middle_between_the_ends(self):
        found = profile(tiny_unet(), scaled(CONV, 1.5))
        blocks = list(found.blocks())
        assert blocks.index("down_blocks.1") < blocks.index("mid_block") < blocks.index("up_blocks.0")
        assert blocks[0] == "conv_in" and blocks[-1] == "conv_out"

    @pytest.mark.parametrize("fmt", ["kohya", "peft", "diffusers-metadata"])
    def test_lora_counts_its_own_scaled_delta(self, tmp_path, fmt):
        base = tiny_unet()
        made = factors(base, (LINEAR, CONV), rank=2)
        file = write(tmp_path, fmt, made, alpha=1.0)
        fused = tiny_unet()
        patch(fused, made, 0.5)
        from_file, by_hand = by_name(profile(base, file)), by_name(profile(base, fused))
        for name, layer in from_file.items():
            assert layer.change == pytest.approx(by_hand[name].change, rel=1e-4)
        assert from_file[LINEAR].change > 0
        assert all(torch.equal(a, b) for a, b in zip(base.parameters(), tiny_unet().parameters(), strict=True))

    def test_checkpoint_folder(self, tmp_path):
        scaled(CONV, 1.5).save_pretrained(tmp_path / "tuned")
        tiny_unet().save_pretrained(tmp_path / "base")
        found = profile(tmp_path / "base", tmp_path / "tuned")
        assert by_name(found)[CONV].change == pytest.approx(0.5, rel=1e-5)
        assert found.base == str(tmp_path / "base")

    def test_busiest_share_by_hand(self):
        unet = tiny_unet()
        found = profile(unet, scaled(CONV, 1.9))
        assert found.busiest_share() == 1.0 and len(found.moved()) == 1
        even = tiny_unet()
        for p in even.parameters():
            p.data *= 1.5
        # From zero weights nothing moves; all other layers move alike, so the busiest tenth holds a tenth.
        assert profile(unet, even).busiest_share() == pytest.approx(0.1, abs=0.01)
        with pytest.raises(ConfigError, match="share"):
            found.busiest_share(0)

    def test_same_weights_have_no_busiest_layer(self):
        with pytest.raises(DataError, match="no layer moved"):
            profile(tiny_unet(), tiny_unet()).busiest_share()

    def test_another_architecture_is_refused(self):
        with pytest.raises(WrongBaseError):
            profile(tiny_unet(), tiny_unet(cross=16))
        with pytest.raises(WrongBaseError):
            profile(tiny_unet(), learner()[0])


class TestLaziest:
    def test_takes_what_moved_least_and_no_norms(self):
        unet = tiny_unet()
        tuned = tiny_unet()
        for number, p in enumerate(tuned.parameters()):
            p.data *= 1.01 if number % 2 else 1.5
        found = profile(unet, tuned)
        names = found.laziest(unet, 0.3)
        sizes = dict(unet.named_parameters())
        assert 0.2 < sum(sizes[n].numel() for n in names) / sum(p.numel() for p in unet.parameters()) <= 0.3
        changes = {layer.name: layer.change for layer in found.layers}
        chosen = {n.rpartition(".")[0] for n in names}
        assert max(changes[n] for n in chosen) <= sorted(changes.values())[-2]
        assert CONV not in chosen or changes[CONV] < max(changes.values())
        assert not any(isinstance(unet.get_submodule(n), torch.nn.GroupNorm) for n in chosen)

    def test_of_another_denoiser_is_refused(self):
        with pytest.raises(WrongBaseError, match="lacks"):
            profile(tiny_unet(), scaled(CONV, 1.5)).laziest(learner()[0], 0.5)


class TestFile:
    def test_round_trip_table_and_plot(self, tmp_path):
        found = profile(tiny_unet(), scaled(CONV, 1.5), scaled(LINEAR, 1.2))
        assert LayerProfile.load(found.save(tmp_path / "p.json")) == found
        assert [p.name for p in tmp_path.iterdir()] == ["p.json"]
        assert CONV in found.to_markdown() and "2 of " in found.to_markdown()
        found.plot().savefig(tmp_path / "p.png")
        assert (tmp_path / "p.png").stat().st_size > 1000

    @pytest.mark.parametrize("text", ["", "{}", '{"format": "other"}', '{"format": "aiao-profile-1", "layers": [{}]}'])
    def test_broken_files_are_named(self, tmp_path, text):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(DataError, match="p.json"):
            LayerProfile.load(tmp_path / "p.json")


def test_self_profile_gives_the_weights_back():
    unet, data, scheduler = learner()
    before = [(p.clone(), p.requires_grad) for p in unet.parameters()]
    found = self_profile(unet, data, scheduler, steps=3)
    assert len(found.moved()) > 0.9 * len(found.layers)
    for p, (old, flag) in zip(unet.parameters(), before, strict=True):
        assert torch.equal(p, old) and p.requires_grad == flag and p.grad is None
    assert not unet.training
    again = self_profile(unet, data, scheduler, steps=3)
    assert again.layers == found.layers
