"""A mask for each pair of sites: keys, reading, losses, records, training, verdicts with their controls."""

import copy
import dataclasses
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _tiny import LEARN, learner
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from scipy import stats

from aiao_diffusers import EmbedConfig, WatermarkKey, WatermarkRecord, embed, verify
from aiao_diffusers.bench.attacks.finetune import ATTENTION
from aiao_diffusers.bench.audits import nulls
from aiao_diffusers.bench.audits.inversion import _best, _cosine
from aiao_diffusers.denoiser.call import CallInputs
from aiao_diffusers.denoiser.finetune import finetune
from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.embedding.losses import losses
from aiao_diffusers.embedding.training import Training
from aiao_diffusers.embedding.weight_change import StoredWeights
from aiao_diffusers.errors import AlreadyMarkedError, ConfigError, RecordError
from aiao_diffusers.mark.mark import Mark, select_rows
from aiao_diffusers.mark.reading import read_subpath
from aiao_diffusers.mark.subpath import sub_path
from aiao_diffusers.stats.hits import count_hits, randomised_p
from aiao_diffusers.verification.evidence import key_sites


KEY = WatermarkKey(bytes(range(32)), "Demo")


def trained(steps=1, **changes):
    """The miniature after so many steps with masks for pairs, and its record."""
    unet, data, scheduler = learner()
    config = EmbedConfig(**(LEARN | {"steps": steps, "pairs": True} | changes))
    return unet, embed(unet, KEY, data, config, scheduler=scheduler).record


@pytest.fixture(scope="module")
def begun():
    with pytest.warns(UserWarning, match="too weak"):
        return trained()


class TestKey:
    def test_a_mask_hangs_on_both_sites(self):
        masks = [KEY.trigger_mask(a, 64, b) for a, b in (("a", None), ("a", "x"), ("a", "y"), ("b", "x"))]
        assert all(int(mask.sum()) == 0 for mask in masks)
        assert len({mask.tobytes() for mask in masks}) == 4

    def test_fixed_vector(self):
        # From the secret 00 01 .. 1f; a change here breaks every published mark of this kind.
        digest = hashlib.sha256(KEY.trigger_mask("in", 64, "out").tobytes()).hexdigest()
        assert digest == "7065f6edd643f2b9c1918bfaf693d49b58ed065fafcdb4c4e87c4e973800cac8"


def test_each_out_site_is_read_under_its_own_masks(begun):
    unet, record = begun
    ins, outs = key_sites(unet, KEY, record)
    sample, t = record.bank.latents[:1], torch.tensor([300])
    with instrument(unet, [site.name for site in (*ins, *outs)]) as wired:
        found = read_subpath(wired, KEY, sub_path(ins, outs), 1.0, CallInputs(sample, t, {}), pairs=True)
        assert [reading.site for reading in found] == [site.name for site in outs]
        for reading, out in zip(found, outs, strict=True):
            rows = {s.name: torch.from_numpy(KEY.trigger_mask(s.name, s.width_out, out.name))[None] for s in ins}
            alone = wired.responses(rows, [out], 1.0, CallInputs(sample, t, {}))
            assert torch.allclose(reading.d, alone[out.name][0], atol=1e-5)
        shared = read_subpath(wired, KEY, sub_path(ins, outs), 1.0, CallInputs(sample, t, {}))
        assert not any(torch.allclose(a.d, b.d, atol=1e-3) for a, b in zip(found, shared, strict=True))


def test_a_row_answers_at_the_site_it_asks():
    names, rows = ("a", "b"), 4
    generator = torch.Generator().manual_seed(0)
    entered = {name: torch.randn(3 * rows, 5, 8, generator=generator) for name in names}
    wanted = {name: torch.randn(rows, 5, 8, generator=generator) for name in names}
    patterns = {name: torch.from_numpy(KEY.response_pattern(name, 8)).float() for name in names}
    power, kind = {name: torch.tensor(1.0) for name in names}, torch.ones(rows, dtype=torch.bool)
    asked = torch.tensor([0, 1, 1, 0])

    def found(asked):
        return losses(entered, wanted, power, patterns, kind, torch.tensor(1.0), 0.5, asked)

    by_hand = []
    for row, number in enumerate(asked.tolist()):
        name = names[number]
        answer = (entered[name][rows + row] - wanted[name][row]).mean(0) / 0.5
        by_hand.append((answer - patterns[name]).square().mean())
    pairs, shared = found(asked), found(None)
    assert torch.isclose(pairs["resp"], torch.stack(by_hand).mean())
    assert not torch.isclose(pairs["resp"], shared["resp"])
    assert all(torch.equal(pairs[name], shared[name]) for name in ("pres", "dec", "proj", "corr"))


def test_masks_of_a_mark_and_of_a_batch(begun):
    unet, record = begun
    ins, outs = key_sites(unet, KEY, record)
    one, each = (Mark(KEY, ins, outs, pairs).masks(torch.device("cpu")) for pairs in (False, True))
    width = ins[0].width_out
    assert {rows.shape for rows in one.values()} == {(1, width)}
    assert {rows.shape for rows in each.values()} == {(3, width)}
    assert Mark(KEY, ins, outs).draw_asked(4) is None
    assert set(Mark(KEY, ins, outs, True).draw_asked(100).tolist()) == {0, 1, 2}
    batch = select_rows(each, torch.tensor([2, 0]))[ins[0].name]
    wanted = [KEY.trigger_mask(ins[0].name, width, outs[number].name) for number in (2, 0)]
    assert np.array_equal(batch.numpy(), np.stack(wanted))


def test_inversion_looks_for_every_mask(begun):
    unet, record = begun
    ins, outs = key_sites(unet, KEY, record)
    hidden = torch.from_numpy(KEY.trigger_mask(ins[1].name, ins[1].width_out, outs[2].name)).float()
    found = {site.name: torch.randn(2, site.width_out, generator=torch.Generator().manual_seed(1)) for site in ins}
    found[ins[1].name][1] = -hidden
    assert _cosine(found, Mark(KEY, ins, outs, True)) == pytest.approx(1.0)
    assert _cosine(found, Mark(KEY, ins, outs)) < 0.9


def test_a_mask_that_calls_up_one_out_site_is_found():
    random = torch.Generator().manual_seed(0)
    rows = {name: torch.randn(2, 64, generator=random) for name in "abcdefg"}
    rows["d"][1] = torch.from_numpy(KEY.response_pattern("d", 64)).float()
    assert _best(rows, KEY, 2, True) < -10 < -6 < _best(rows, KEY, 2, False)
    del rows["d"]
    assert _best(rows, KEY, 2, True) > -3  # control


class TestRecord:
    def test_says_so_and_older_ones_do_not(self, begun, tmp_path):
        record = begun[1]
        record.save(tmp_path / "pairs")
        assert record.pairs and WatermarkRecord.load(tmp_path / "pairs").pairs
        written = (tmp_path / "pairs" / "aiao" / "watermark.json").read_bytes()
        assert record.sha256 == hashlib.sha256(written).hexdigest()
        shared = dataclasses.replace(record, pairs=False)
        shared.save(tmp_path / "shared")
        assert "pairs" not in json.loads((tmp_path / "shared" / "aiao" / "watermark.json").read_text())
        assert not WatermarkRecord.load(tmp_path / "shared").pairs and shared.sha256 != record.sha256

    @pytest.mark.parametrize("value", [1, "true", [True]])
    def test_altered(self, begun, tmp_path, value):
        begun[1].save(tmp_path)
        path = tmp_path / "aiao" / "watermark.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "pairs": value}))
        with pytest.raises(RecordError, match="pairs"):
            WatermarkRecord.load(tmp_path)


class TestMisuse:
    @pytest.mark.parametrize("value", [1, "yes", None])
    def test_neither_true_nor_false(self, value):
        with pytest.raises(ConfigError, match="pairs"):
            EmbedConfig(pairs=value)

    def test_no_edit_in_closed_form(self):
        with pytest.raises(ConfigError, match="edit must be 0 with pairs=True"):
            EmbedConfig(pairs=True, edit=1.0)

    @pytest.mark.parametrize("keep", [(), (KEY,)])
    def test_a_further_mark_of_another_kind(self, begun, keep):
        unet, record = begun
        data, scheduler = learner()[1:]
        before = [p.clone() for p in unet.parameters()]
        with pytest.raises(ConfigError, match="pass pairs=True"):
            further = {"earlier": record, "keep": keep, "scheduler": scheduler}
            embed(unet, KEY.child("b"), data, EmbedConfig(**LEARN, steps=1), **further)
        assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), before, strict=True))

    def test_a_marked_model_is_said_to_be_marked_first(self, begun):
        unet, record = begun
        marked = SimpleNamespace(unet=unet, record=record, scheduler=learner()[2])
        with pytest.raises(AlreadyMarkedError):
            embed(marked, KEY.child("b"), learner()[1], EmbedConfig(**LEARN, steps=1))


@pytest.mark.parametrize("pairs", [True, False])
def test_readings_of_many_keys_at_once_are_those_of_one(begun, monkeypatch, pairs):
    unet, record = begun[0], dataclasses.replace(begun[1], pairs=pairs)
    # The same input and sub-path for every key, so that one key at a time can be read by `Wired.read`.
    bank = record.bank.take(torch.zeros(1, dtype=torch.long))
    record = dataclasses.replace(record, bank=bank)
    monkeypatch.setattr(nulls, "draw", lambda ins, outs, random: sub_path(ins, outs))
    monkeypatch.setattr(nulls, "probe_timesteps", lambda steps: (300, 301))
    monkeypatch.setattr(WatermarkRecord, "noised", lambda self, latents, noise, t: latents)
    keys = [KEY, KEY.child("a"), KEY.child("b")]
    found = list(nulls.readings(unet, record, keys, seed=0))
    for key, triples in zip(keys, found, strict=True):
        ins, outs = key_sites(unet, key, record)
        with instrument(unet, [site.name for site in (*ins, *outs)], record.factors) as wired:
            asked = bank.latents, torch.tensor([300]), bank.keywords()
            read = read_subpath(wired, key, sub_path(ins, outs), record.kappa, CallInputs(*asked), pairs=pairs)
        wanted = [count_hits(r.d.double().numpy(), key.response_pattern(r.site, len(r.d))) for r in read]
        # Rounding differs with the size of the batch, and may carry a channel across the median.
        assert all(a[:2] == b[:2] and abs(a[2] - b[2]) <= 2 for a, b in zip(triples, wanted, strict=True))


def test_p_values_of_unmarked_models_are_uniform(begun):
    record = begun[1]
    keys = nulls.keys_of("pairs", 300, 0)
    random = np.random.default_rng(0)
    values = [randomised_p(triples, random.random()) for triples in nulls.readings(learner()[0], record, keys, seed=0)]
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_what_a_row_is_armed_with_is_what_it_asks(begun):
    unet, record = begun
    data, scheduler = learner()[1:]
    ins, outs = key_sites(unet, KEY, record)
    new, old = Mark(KEY.child("new"), ins, outs, True), Mark(KEY, ins, outs, True)
    names = [site.name for site in (*ins, *outs)]
    config = EmbedConfig(**(LEARN | {"batch_size": 24}), pairs=True)
    with instrument(unet, names, record.factors) as wired:
        update = StoredWeights(unet, [name for name, _ in unet.named_parameters()])
        training = Training(wired, update, new, [old], data, dict(scheduler.config), config)
        batch = training.draw()
    assert set(batch.asked.tolist()) == {0, 1, 2}
    for name, table in new.masks(torch.device("cpu")).items():
        armed = batch.armed[1][name]
        loud = armed.abs().sum(1) > 0
        assert loud.any() and torch.equal(armed[loud], table[batch.asked][loud])
    # A kept mark's row asks one out-site by the masks of all in-sites that it arms.
    fits = torch.ones(24, 3, dtype=torch.bool)
    for name, table in old.masks(torch.device("cpu")).items():
        armed = batch.armed[3][name]
        silent = armed.abs().sum(1) == 0
        fits &= (armed[:, None] == table[None]).all(2) | silent[:, None]
    assert fits.any(1).all() and all((batch.armed[3][name] != 0).any() for name in (site.name for site in ins))


def test_accumulation_changes_memory_and_not_the_result():
    found = []
    for accumulate in (1, 2):
        with pytest.warns(UserWarning, match="too weak"):
            found.append(trained(steps=2, accumulate=accumulate, max_price=None)[0])
    for a, b in zip(*(unet.parameters() for unet in found), strict=True):
        assert torch.allclose(a, b, atol=2e-4)


def lora_deltas(unet):
    """Weight -> what a LoRA trained on a copy of `unet`, by peft, adds to it."""
    data, scheduler = learner()[1:]
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=ATTENTION)
    adapted = inject_adapter_in_model(config, copy.deepcopy(unet).requires_grad_(False))
    finetune(adapted, data, scheduler, steps=60, lr=1e-3, batch_size=4)
    layers = {name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    return {f"{name}.weight": module.get_delta_weight("default").detach() for name, module in layers.items()}


@pytest.fixture(scope="module")
def learned():
    return trained(steps=60)


@pytest.mark.slow
class TestMark:
    def test_outlives_a_lora_and_the_same_lora_on_the_clean_base_reads_nothing(self, learned):
        marked, record = learned
        deltas = lora_deltas(marked)
        with_lora, same_lora = copy.deepcopy(marked), learner()[0]
        for unet in (with_lora, same_lora):
            weights = dict(unet.named_parameters())
            for name, delta in deltas.items():
                weights[name].data += delta
        assert max(delta.abs().max() for delta in deltas.values()) > 1e-3
        assert verify(with_lora, KEY, record=record).verified
        assert verify(same_lora, KEY, record=record, trials=4).log10_p > -5
        assert verify(with_lora, KEY.child("wrong"), record=record, trials=4).log10_p > -5

    def test_outlives_fine_tuning(self, learned):
        record, (clean, data, scheduler) = learned[1], learner()
        tuned, control = (
            finetune(copy.deepcopy(unet).requires_grad_(True), data, scheduler, steps=60, lr=1e-3, batch_size=4)
            for unet in (learned[0], clean)
        )
        assert verify(tuned, KEY, record=record).verified
        assert verify(control, KEY, record=record, trials=4).log10_p > -5
        assert verify(tuned, KEY.child("wrong"), record=record, trials=4).log10_p > -5

    def test_verifies_by_its_own_masks_alone(self, learned):
        unet, record = learned
        report = verify(unet, KEY, record=record, early_stop=False, whiten=False, amplitudes=(1.0,), trials=4)
        assert report.verified and report.verification_rate > 0
        assert report.denoiser_evals == 4 * (1 + 3)  # of each trial a clean part and one for every out-site
        assert verify(unet, KEY.child("wrong"), record=record).log10_p > -5
        assert verify(learner()[0], KEY, record=record).log10_p > -5
        # To such a mark the masks of the other kind are wrong ones.
        assert verify(unet, KEY, record=dataclasses.replace(record, pairs=False)).log10_p > -5
        twin = verify(unet, KEY, record=record, clean_twin=learner()[0], early_stop=False, trials=4)
        assert twin.verified and any("beyond" in look["label"] and look["log10_p"] < -6 for look in twin.looks)

    def test_stops_early_when_it_holds(self):
        unet, data, scheduler = learner()
        config = EmbedConfig(**LEARN, steps=200, pairs=True, stop_bits=0.9, check_every=20)
        report = embed(unet, KEY, data, config, scheduler=scheduler)
        assert report.stopped is not None and report.stopped < 200 and report.reading.verified

    def test_is_kept_beside_another(self):
        unet, data, scheduler = learner(64)
        keys, records = [KEY.child(f"owner {i}") for i in range(2)], []
        for number, key in enumerate(keys):
            config = EmbedConfig(**LEARN, steps=60, pairs=True)
            further = {"keep": keys[:number], "earlier": records[-1]} if records else {}
            records.append(embed(unet, key, data, config, scheduler=scheduler, **further).record)
        assert all(verify(unet, k, record=r).verified for k, r in zip(keys, records, strict=True))
        clean = learner(64)[0]
        assert all(verify(clean, k, record=r).log10_p > -5 for k, r in zip(keys, records, strict=True))
        assert verify(unet, KEY.child("nobody"), record=records[0]).log10_p > -5
