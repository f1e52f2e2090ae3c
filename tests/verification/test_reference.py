"""The private file for disguised suspects: round trip and refusals."""

import copy
import dataclasses

import pytest
import torch
from _disguises import as_trained, latents
from _tiny import tiny_unet
from safetensors.torch import save_file

from aiao_diffusers import LatentData, WatermarkKey, verify
from aiao_diffusers.bench.attacks.disguise import disguise
from aiao_diffusers.errors import RecordError
from aiao_diffusers.mark.record import WatermarkRecord
from aiao_diffusers.verification.reference import Reference, observe


KEY = WatermarkKey(bytes(range(32)), "Demo")


class TestReference:
    def test_round_trip(self, tmp_path):
        made = observe(as_trained(), latents(), {})
        again = Reference.load(made.save(tmp_path / "r.safetensors"))
        assert again.sha256 == made.sha256 and set(again.leaving) == set(made.leaving)
        assert observe(as_trained(1), latents(), {}).sha256 != made.sha256  # another teacher

    def test_not_a_reference(self, tmp_path):
        latents().save(tmp_path / "latents.safetensors")
        with pytest.raises(RecordError, match="no alignment reference"):
            Reference.load(tmp_path / "latents.safetensors")

    @pytest.mark.parametrize("kind", ["leaving", "entering", "timesteps", "latents"])
    @pytest.mark.parametrize(
        "change", [lambda v: v[:1], lambda v: v.flatten()[0], lambda v: v * torch.nan, lambda v: v[:0]]
    )
    def test_tensors_of_another_shape_are_refused(self, tmp_path, kind, change):
        tensors = observe(as_trained(), latents(), {}, inputs=4).tensors()
        name = next(name for name in tensors if name.startswith(kind))
        save_file({**tensors, name: change(tensors[name]).contiguous().clone()}, tmp_path / "r.safetensors")
        with pytest.raises(RecordError):
            Reference.load(tmp_path / "r.safetensors")

    def test_a_twin_that_does_not_take_the_records_bank_is_typed(self, record):
        other = tiny_unet(cross=16)
        with pytest.raises(RecordError, match="no reference can be made"):
            verify(tiny_unet(), KEY, record=record, reference=other)

    def test_inputs_that_the_suspect_does_not_take_end_the_aligned_looks_only(self, record):
        made = observe(tiny_unet(), record.bank, {}, inputs=4)
        crafted = dataclasses.replace(made, inputs=LatentData(made.inputs.latents, {"surprise": torch.zeros(4)}))
        few = {"trials": 1, "amplitudes": (1.0,), "whiten": False}
        report = verify(tiny_unet(), KEY, record=record, reference=crafted, **few)
        assert report.verdict == "not_verified"
        assert any("alignment looks are not available" in text for text in report.warnings)


@pytest.mark.slow
class TestVerify:
    def test_reference_is_bound_by_the_record(self, marked):
        teacher, unet, report = marked
        assert report.record.reference_sha256 == report.reference.sha256
        suspect = disguise(copy.deepcopy(unet), "permute")
        assert verify(suspect, KEY, record=report.record, reference=teacher).verified  # the twin serves as well
        with pytest.raises(RecordError, match="another clean twin"):
            verify(suspect, KEY, record=report.record, reference=unet)
        with pytest.raises(RecordError, match="another reference"):
            verify(suspect, KEY, record=report.record, reference=observe(unet, latents(), {}))

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
