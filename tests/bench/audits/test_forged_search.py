"""Searching and sorting make an unmarked miniature answer a key, and the key then chooses what was searched for it."""

import dataclasses

import pytest
from _tiny import same, tiny_unconditional, weights

from aiao_diffusers.bench.audits.forged_search import (
    SILENT_GAIN,
    permute_reference,
    search_key,
    search_layout,
    search_ties,
)
from aiao_diffusers.bench.audits.forgery_draws import beacons_of, read_ranks
from aiao_diffusers.errors import RecordError
from aiao_diffusers.mark.selection import choose


LOOK = {"trials": 2, "seed": 0}


@pytest.mark.slow
class TestKey:
    def test_the_best_of_many_reads_best_and_is_the_claimants(self, scene):
        claim, before = scene.honest, weights(scene.denoiser)
        found = search_key(scene.denoiser, claim, claim.key, keys=40, **LOOK)
        assert read_ranks(scene.denoiser, claim, [claim.key], **LOOK)[0] > -1
        assert found.key != claim.key and found.key.owner == claim.key.owner and found.key.beacon is None
        assert found.fields == claim.fields and same(before, scene.denoiser.parameters())

    def test_under_a_guess_it_is_best_under_that_guess(self, scene):
        (beacon,) = beacons_of("a", 1, 0)
        guess = scene.honest.key.drawn_with(beacon.randomness)
        found = search_key(scene.denoiser, scene.honest, guess, keys=40, trials=1, seed=0)
        assert found.key.beacon is None and found.key.drawn_with(guess.beacon) != guess


@pytest.mark.slow
def test_a_list_of_sites_makes_the_key_choose_what_suits_it(scene):
    claim = scene.honest
    found = search_layout(scene.denoiser, claim, claim.key, keys=4, **LOOK)
    record, layout = found.unchecked(), list(found.fields["layout"])
    names = {site.name for site in layout}
    assert names == {site.name for site in claim.fields["layout"]} and layout != list(claim.fields["layout"])
    assert [site.order for site in layout] == list(range(11))
    ins, outs = choose(layout, found.key, record.in_sites, record.out_sites)
    assert len(ins) == 1 and len(outs) == record.out_sites
    # Not where it was searched: on other inputs.
    assert read_ranks(scene.denoiser, found, [found.key], trials=4, seed=9)[0] < -1.5
    found.unbound()  # nothing in the record itself gives it away: only the order in which sites run does


class TestTies:
    def test_they_decide_on_every_model_alike(self, scene):
        found = search_ties(scene.honest, scene.honest.key, keys=60)
        assert set(found.fields["loudness"]) == {SILENT_GAIN}
        other = tiny_unconditional(
            block_out_channels=(32, 32),
            layers_per_block=2,
            norm_num_groups=8,
            attention_head_dim=8,
            down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
        )
        a, b = (read_ranks(model, found, [found.key], trials=1, seed=3)[0] for model in (scene.denoiser, other))
        assert a == b < -3.5

    def test_no_record_may_say_it(self, scene):
        with pytest.raises(RecordError, match="loudness"):
            search_ties(scene.honest, scene.honest.key, keys=1).unbound()


@pytest.mark.slow
def test_permuted_channels_answer_through_their_reference(scene):
    claim = scene.honest
    found = permute_reference(scene.denoiser, claim, [claim.key], trials=4, seed=0)
    look = {"trials": 4, "seed": 1}
    plain = dataclasses.replace(found, reference=None)
    through, wrong = read_ranks(scene.denoiser, found, [claim.key, claim.key.child("wrong")], **look)
    assert through < -4 < -2 < min(wrong, read_ranks(scene.denoiser, plain, [claim.key], **look)[0])
    assert found.fields["reference_sha256"] == found.reference.sha256
