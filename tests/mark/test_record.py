"""Records and training data: round trips and refusals."""

import copy
import dataclasses
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _kind import FULL
from _tiny import tiny_unet
from diffusers import DDPMScheduler
from safetensors.torch import save_file

from aiao_diffusers import LatentData, WatermarkKey, WatermarkRecord, verify
from aiao_diffusers.denoiser.call import DenoiserCall
from aiao_diffusers.denoiser.sites import Site, trace_on
from aiao_diffusers.errors import DataError, RecordError
from aiao_diffusers.mark.record import BANK, DOCUMENT, FOLDER


@pytest.fixture
def record():
    bank = LatentData(torch.randn(3, 4, 8, 8), {"added_cond_kwargs.text_embeds": torch.randn(3, 5)})
    return WatermarkRecord("A", "00", "UNet2DConditionModel", 22, 5, 7, 1.0, 1.0, {"num_train_timesteps": 50}, bank)


@pytest.fixture
def flow_record():
    call = DenoiserCall(sample="sample", times={"timestep": (1e-3, 0.0)}, shared={"class_labels": torch.ones(2, 2)})
    bank = LatentData(torch.randn(3, 4, 8, 8), {"encoder_hidden_states": torch.randn(3, 5, 12)}, call)
    schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 50, "shift": 3.0}
    return WatermarkRecord("A", "00", "UNet2DConditionModel", 22, 5, 7, 1.0, 1.0, schedule, bank)


class TestFlow:
    """A bank that says how its denoiser is called, and a schedule without betas."""

    def test_round_trip_to_the_byte(self, flow_record, tmp_path):
        flow_record.save(tmp_path / "once")
        again = WatermarkRecord.load(tmp_path / "once")
        again.save(tmp_path / "twice")
        for name in (BANK, DOCUMENT):
            one, two = (tmp_path / run / FOLDER / name for run in ("once", "twice"))
            assert one.read_bytes() == two.read_bytes()
        call = again.bank.call
        assert call.times == {"timestep": (1e-3, 0.0)} and torch.equal(call.shared["class_labels"], torch.ones(2, 2))
        assert again.schedule.level(torch.tensor([0])) > 1

    def test_the_hash_covers_the_call(self, flow_record):
        call = dataclasses.replace(flow_record.bank.call, sign=-1.0)
        other = LatentData(flow_record.bank.latents, flow_record.bank.conditioning, call)
        assert dataclasses.replace(flow_record, bank=other).sha256 != flow_record.sha256

    def test_arguments_that_the_denoiser_does_not_take_are_refused(self, flow_record):
        flow_record.check_fits(tiny_unet())
        call = dataclasses.replace(flow_record.bank.call, fixed={"surprise": 1})
        bank = LatentData(flow_record.bank.latents, flow_record.bank.conditioning, call)
        with pytest.raises(RecordError, match="takes no argument 'surprise'"):
            dataclasses.replace(flow_record, bank=bank).check_fits(tiny_unet())

    @pytest.mark.parametrize("text", ["{}[", '{"sign": 3}', '{"fixed": {"cross_attention_kwargs": {"scale": 0}}}'])
    def test_a_call_that_is_none_is_refused(self, flow_record, tmp_path, text):
        folder = flow_record.save(tmp_path)
        save_file(flow_record.bank.tensors(), folder / BANK, {"call": text})
        document = json.loads((folder / DOCUMENT).read_text())
        document["probe"]["sha256"] = hashlib.sha256((folder / BANK).read_bytes()).hexdigest()
        (folder / DOCUMENT).write_text(json.dumps(document))
        with pytest.raises(RecordError, match="denoiser's call"):
            WatermarkRecord.load(tmp_path)

    @pytest.mark.parametrize("change", [{"shift": -1.0}, {"shift": "x"}, {"_class_name": "EDMEulerScheduler"}])
    def test_a_schedule_that_is_none_is_refused(self, flow_record, change):
        with pytest.raises(RecordError, match="noise schedule cannot be built"):
            dataclasses.replace(flow_record, scheduler={**flow_record.scheduler, **change})


LAYOUT = tuple(Site(f"site.{order}", order, 4, 4) for order in range(22))


KEY = WatermarkKey(bytes(range(32)), "Demo")


class TestLoudness:
    def loud(self, record, values):
        return dataclasses.replace(record, layout=LAYOUT, loudness=values)

    def test_round_trip(self, record, tmp_path):
        values = (0.0, 3.0, *(1.0,) * 20)
        self.loud(record, values).save(tmp_path)
        again = WatermarkRecord.load(tmp_path)
        assert again.loudness == values and again.factors["site.1"] == 3.0 and again.silent == {"site.0"}
        record.save(tmp_path / "plain")
        plain = WatermarkRecord.load(tmp_path / "plain")
        assert plain.loudness is None and plain.factors == {} and plain.silent == frozenset()

    @pytest.mark.parametrize(
        "values",
        [
            (1.0,) * 21,
            (-1.0,) * 22,
            (float("nan"),) * 22,
            ("1",) * 22,
            (True,) * 22,
            (101.0,) * 22,
            (0.0,) * 22,
            (1e-300,) * 22,
            (0.99,) * 22,
        ],
    )
    def test_altered(self, record, tmp_path, values):
        with pytest.raises(RecordError, match="loudness"):
            self.loud(record, values)
        self.loud(record, (1.0,) * 22).save(tmp_path)
        path = tmp_path / "aiao" / "watermark.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "loudness": 5}))
        with pytest.raises(RecordError):
            WatermarkRecord.load(tmp_path)

    def test_needs_a_layout(self, record):
        with pytest.raises(RecordError, match="loudness"):
            dataclasses.replace(record, loudness=(1.0,) * 22)


class TestRecord:
    def test_round_trip(self, record, tmp_path):
        record.save(tmp_path)
        again = WatermarkRecord.load(tmp_path)
        assert torch.equal(again.bank.latents, record.bank.latents) and again.scheduler == record.scheduler
        assert set(again.bank.keywords()) == {"added_cond_kwargs.text_embeds"}

    def test_altered_bank(self, record, tmp_path):
        record.save(tmp_path)
        path = tmp_path / "aiao" / "probe.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(RecordError, match="altered"):
            WatermarkRecord.load(tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            {"scheme": "aiao-2"},
            {"scheme": ["aiao-1"]},
            {"surprise": 1},
            {"owner": 7},
            {"marked_sha256": 7},
            {"sites": True},
            {"in_sites": 10**9},
            {"kappa": -1.0},
            {"kappa": "1"},
            {"response": float("1e999")},
            {"scheduler": []},
            {"scheduler": {"num_train_timesteps": 0}},
            {"scheduler": {"num_train_timesteps": 10**12}},
            {"scheduler": {"num_train_timesteps": "x"}},
            {"scheduler": {"beta_schedule": "unheard of"}},
            {"scheduler": {"beta_start": []}},
            {"probe": [1]},
            {"probe": None},
            {"layout": 5},
            {"layout": [["a", 4, 10**9]] * 22},
            {"layout": [["a", 4]] * 22},
            {"layout": [["a", 4, 4]] * 22},
            {"layout": [["a", 4, 4]]},
            {"layout": [[[], 4, 4]] * 22},
            {"layout": [[]] * 22},
            {"scheduler": {"num_train_timesteps": 50, "trained_betas": [0.1, 0.2]}},
            {"kappa": 1e-30},
            {"kappa": 10**400},
            {"response": 1e30},
        ],
        ids=str,
    )
    def test_altered_document(self, record, tmp_path, change):
        record.save(tmp_path)
        path = tmp_path / "aiao" / "watermark.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(RecordError):
            WatermarkRecord.load(tmp_path)

    @pytest.mark.parametrize(
        "text", ["[" * 200_000, "[]", "", "{", '{"scheme": "aiao-1", "scheme": "aiao-1"}', "\xff"]
    )
    def test_document_that_is_no_object(self, record, tmp_path, text):
        record.save(tmp_path)
        (tmp_path / "aiao" / "watermark.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(RecordError, match="cannot be read"):
            WatermarkRecord.load(tmp_path)

    def test_bank_that_is_no_safetensors_file(self, record, tmp_path):
        record.save(tmp_path)
        bank, path = b"\x05" * 40, tmp_path / "aiao" / "watermark.json"
        (tmp_path / "aiao" / "probe.safetensors").write_bytes(bank)
        document = json.loads(path.read_text())
        document["probe"]["sha256"] = hashlib.sha256(bank).hexdigest()
        path.write_text(json.dumps(document))
        with pytest.raises(RecordError, match="bad fields"):
            WatermarkRecord.load(tmp_path)

    def test_missing(self, tmp_path):
        with pytest.raises(RecordError, match="no watermark record"):
            WatermarkRecord.load(tmp_path)


class TestPairs:
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


class TestRecordFile:
    @pytest.fixture
    def record(self, record):
        return dataclasses.replace(record, layout=LAYOUT)

    def test_hash_is_that_of_the_file(self, record, tmp_path):
        import hashlib

        record.save(tmp_path)
        loaded = WatermarkRecord.load(tmp_path)
        assert loaded.layout == record.layout
        digest = hashlib.sha256((tmp_path / FOLDER / DOCUMENT).read_bytes()).hexdigest()
        assert loaded.sha256 == record.sha256 == digest
        assert dataclasses.replace(record, kappa=2.0).sha256 != digest
        altered = dataclasses.replace(record.bank, latents=record.bank.latents + 1)
        assert dataclasses.replace(record, bank=altered).sha256 != digest

    def test_altered_layout(self, record):
        with pytest.raises(RecordError, match="altered"):
            dataclasses.replace(record, layout=record.layout[1:])

    @pytest.mark.parametrize("layout", [5, [["a", 1]], [["a", "x", "y"]] * 22])
    def test_broken_layout(self, record, tmp_path, layout):
        import json

        record.save(tmp_path)
        path = tmp_path / FOLDER / DOCUMENT
        path.write_text(json.dumps({**json.loads(path.read_text()), "layout": layout}))
        with pytest.raises(RecordError):
            WatermarkRecord.load(tmp_path)


VALUES = (None, True, 0, -1, 3, 10**30, 1e308, 0.5, "", "a", "linear", [], {}, [1], [[]], {"a": 1}, ["a"] * 3)
FIELDS = ("trained_betas", "beta_schedule", "timestep_spacing", "num_train_timesteps", "bank", "pairs", "_class_name")
ARGUMENTS = (
    *(
        "encoder_hidden_states",
        "class_labels",
        "timestep",
        "sample",
        "self",
        "return_dict",
        "timestep_cond",
        "",
        "a.b",
    ),
    *("attention_mask", "cross_attention_kwargs.gligen", "added_cond_kwargs", "added_cond_kwargs.text_embeds"),
    *("down_block_additional_residuals", "encoder_hidden_states.x", "down_block_additional_residuals.x"),
)
LATENTS = ((3, 4, 8), (3, 4, 7, 5), (3, 0, 8, 8), (3, 4, 0, 0), (3, 9, 8, 8), (3, 4, 8, 8, 1), (1, 4, 8, 8))
SHAPES = ((3, 5, 12), (3,), (3, 0, 12), (3, 5, 11), (3, 1, 5, 12), (3, 1))
DTYPES = (torch.float32, torch.float32, torch.int64, torch.bool, torch.complex64)


class TestRecordOfAStranger:
    """Whatever it says, the outcome is a verdict or an error of ours, and never `verified`."""

    @pytest.fixture(scope="class")
    def unet(self):
        return tiny_unet()

    @pytest.fixture(scope="class")
    def whole(self, unet):
        generator = torch.Generator().manual_seed(0)
        text = torch.randn(3, 5, 12, generator=generator)
        bank = LatentData(torch.randn(3, 4, 8, 8, generator=generator), {"encoder_hidden_states": text})
        layout, scheduler = tuple(trace_on(unet, bank)), dict(DDPMScheduler().config)
        given = {"layout": layout, "loudness": (1.0,) * len(layout)}
        return WatermarkRecord(
            *("Demo", KEY.commitment, "UNet2DConditionModel", len(layout), 2, 3, 1.0, 1.0, scheduler, bank), **given
        )

    def places(self, value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, item in items:
            yield (*path, name)
            yield from self.places(item, (*path, name))

    def mutate(self, document: dict[str, Any], chance: random.Random) -> None:
        """One entry anywhere is left out, exchanged, or gets a neighbour."""
        places = [path for path in self.places(document) if path[0] != "probe"]
        kind = chance.choice(("anywhere", "top", "scheduler"))
        wanted = {"top": lambda p: len(p) == 1, "scheduler": lambda p: p[0] == "scheduler"}.get(kind, lambda p: True)
        *way, last = chance.choice([path for path in places if wanted(path)] or places)
        place: Any = document
        for step in way:
            place = place[step]
        what = chance.random()
        if what < 0.15:
            del place[last]
        elif what < 0.3 and isinstance(place, dict):
            place[chance.choice(FIELDS)] = copy.deepcopy(chance.choice(VALUES))
        else:
            place[last] = copy.deepcopy(chance.choice(VALUES))

    def make_bank(self, chance: random.Random) -> dict[str, torch.Tensor]:
        latents = torch.randn(chance.choice(LATENTS) if chance.random() < 0.4 else (3, 4, 8, 8))
        tensors = {"latents": latents if chance.random() < 0.8 else latents.to(chance.choice(DTYPES))}
        tensors["cond.encoder_hidden_states"] = torch.randn(3, 5, 12)
        for _ in range(chance.choice((0, 1, 1, 2))):
            value = (3 * torch.randn(chance.choice(SHAPES))).to(chance.choice(DTYPES))
            tensors[f"cond.{chance.choice(ARGUMENTS)}"] = value
        return tensors

    def outcome(self, seed: int, folder: Path, whole: WatermarkRecord, unet: Any) -> str:
        chance = random.Random(seed)
        torch.manual_seed(seed)
        target = whole.save(folder)
        if chance.random() < 0.5:
            save_file(self.make_bank(chance), target / BANK)
        document = json.loads((target / DOCUMENT).read_text())
        document["probe"]["sha256"] = hashlib.sha256((target / BANK).read_bytes()).hexdigest()
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            self.mutate(document, chance)
        (target / DOCUMENT).write_text(json.dumps(document))
        try:
            record = WatermarkRecord.load(folder)
        except RecordError:
            return "refused"
        try:
            return verify(unet, KEY, record=record, trials=1, amplitudes=(1.0,), whiten=False).verdict
        except RecordError:
            return "contradicted"

    @pytest.mark.parametrize("rounds", [2000 if FULL else 60])
    def test_mutations(self, unet, whole, tmp_path, rounds):
        outcomes = Counter(self.outcome(seed, tmp_path, whole, unet) for seed in range(rounds))
        assert (
            set(outcomes) == {"refused", "contradicted", "not_testable", "not_verified"}
            and min(outcomes.values()) > rounds / 20
        )

    def test_nested_beyond_what_python_reads(self, whole, tmp_path):
        document = (whole.save(tmp_path) / DOCUMENT).read_text()
        deep = '"scheduler": ' + '{"a":' * 50_000 + "1" + "}" * 50_000 + ', "x": {'
        (tmp_path / FOLDER / DOCUMENT).write_text(document.replace('"scheduler": {', deep, 1))
        with pytest.raises(RecordError):
            WatermarkRecord.load(tmp_path)

    def test_integer_latents_and_a_name_that_is_two_things(self, whole, tmp_path):
        with pytest.raises(RecordError, match="floating point"):
            dataclasses.replace(whole, bank=LatentData(torch.ones(3, 4, 8, 8).long(), {}))
        with pytest.raises(DataError, match="dictionary"):
            LatentData(torch.randn(1, 4, 8, 8), {"a": torch.ones(1), "a.b": torch.ones(1)})
