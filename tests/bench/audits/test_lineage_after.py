"""What happens to a file is what it says, an inherited direction outlives what should leave it, and clean files stay clean."""

import pytest
import torch
from _carried import KEY, planted, text_unet
from safetensors.torch import save_file

from aiao_diffusers.bench.audits import lineage_after as after
from aiao_diffusers.bench.audits.lineage_after import (
    TRANSFORMS,
    Kept,
    delta,
    load_adapter,
    measure_conversions,
    measure_extraction,
    measure_merges,
    measure_transforms,
)
from aiao_diffusers.lineage.site import direction
from aiao_diffusers.lineage.sites import plan_carrier


@pytest.fixture(scope="module")
def unet():
    return text_unet()


@pytest.fixture(scope="module")
def kept(unet, tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("kept"), {}
    for name, strength, key in (("own", 0.5, KEY), ("clean", 0.0, KEY), ("rival", 0.5, KEY.child("rival"))):
        file = folder / f"{name}.safetensors"
        save_file({n: v.contiguous() for n, v in planted(unet, strength, key).items()}, file)
        found[name] = Kept(file, "twin" if name == "clean" else "carrier", key, unet)
    return found


def made(name, kept, unet):
    return TRANSFORMS[name](load_adapter(kept.file), unet, torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_transforms_leave_what_was_inherited_and_make_nothing_up(kept, tmp_path):
    ticks = []
    rows = measure_transforms([kept["own"], kept["clean"]], tmp_path, lambda: ticks.append(1))
    found = {(row["transform"], row["side"]): row["log10_p"] for row in rows}
    assert len(found) == 2 * len(TRANSFORMS) and len(ticks) == 2
    plain = found["as trained", "carrier"]
    for name in TRANSFORMS:
        assert found[name, "twin"] > -4
    for name in ("cast to float16", "cast to float8 (e4m3)", "resized to rank 4", "noise of the change's own size"):
        assert found[name, "carrier"] < 0.5 * plain
    for name in ("scaled by 0.1", "scaled by -1"):
        assert found[name, "carrier"] == pytest.approx(plain)


def test_transforms_are_what_they_say(kept, unet):
    adapter = load_adapter(kept["own"].file)
    module = next(name for name, (down, _) in adapter.items() if down.ndim == 4)
    plain, name = delta(adapter[module]), f"unet.{module}.lora_A.weight"
    one = made("resized to rank 1", kept["own"], unet)
    up, down = one[name.replace("lora_A", "lora_B")], one[name]
    u, s, v = torch.linalg.svd(plain, full_matrices=False)
    torch.testing.assert_close(
        up.flatten(1) @ down.flatten(1), s[0] * torch.outer(u[:, 0], v[0]), atol=1e-4, rtol=1e-4
    )
    assert down.shape[2:] == unet.get_submodule(module).weight.shape[2:]
    pruned = made("the smallest 90% of the change set to zero", kept["own"], unet)
    left = pruned[f"lora_unet_{module.replace('.', '_')}.diff"]
    assert left.shape == unet.get_submodule(module).weight.shape and 0.09 < float((left != 0).float().mean()) < 0.11
    assert made("cast to float8 (e4m3)", kept["own"], unet)[name].dtype == torch.float8_e4m3fn
    halves = [made(f"half of the rank kept, the {which}", kept["own"], unet)[name] for which in ("larger", "smaller")]
    assert [len(half) for half in halves] == [2, 2]
    extracted = made("fused in float32, extracted at rank 8", kept["own"], unet)
    again = extracted[name.replace("lora_A", "lora_B")].flatten(1) @ extracted[name].flatten(1)
    torch.testing.assert_close(again, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_formats_say_the_same(kept, tmp_path):
    rows = measure_conversions([kept["own"]], tmp_path, lambda: None)
    read = [row for row in rows if row["log10_p"] is not None]
    assert len(read) > 15 and all(row["log10_p"] == pytest.approx(row["plain"], rel=0.2) for row in read)
    assert {row["transform"] for row in rows} - {row["transform"] for row in read} == {"LyCORIS GLoRA"}


@pytest.mark.slow
def test_sums_dilute_and_are_read_under_the_key_of_one(kept, tmp_path):
    own = [kept["own"], kept["rival"]]
    rows = measure_merges(own, [kept["clean"]] * 5, tmp_path, lambda: None)
    of_own = {row["transform"]: row["log10_p"] for row in rows[: len(rows) // 2] if row["side"] == "carrier"}
    assert (
        of_own["summed with 4 clean"] > of_own["summed with 1 clean"] and of_own["summed with one of another key"] < -6
    )
    assert all(row["log10_p"] > -4 for row in rows if row["side"] == "twin")


def test_a_sum_is_the_mean_of_the_changes(kept):
    adapter = load_adapter(kept["own"].file)
    state = after._sum_of([adapter, adapter])
    module = next(iter(adapter))
    up, down = (state[f"unet.{module}.lora_{part}.weight"].flatten(1) for part in ("B", "A"))
    torch.testing.assert_close(up @ down, delta(adapter[module]))
    assert after._sum_of([adapter, None]) is None


def test_a_full_change_along_the_direction_is_extracted(unet, tmp_path):
    tuned, clean = text_unet(), text_unet()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for model, size in ((tuned, 1.0), (clean, 0.0)):
            for site in plan_carrier(model).sites:
                v = size * (torch.tensor(direction(KEY, site)).float() + 1)
                for layer in site.layers:
                    weight = model.get_submodule(layer).weight
                    inputs = torch.randn(4, len(v), generator=generator) + v
                    change = torch.randn(len(weight), 4, generator=generator) @ inputs
                    weight.add_(1e-3 * change.reshape(weight.shape))
    rows = measure_extraction([("carrier", KEY, unet, tuned), ("twin", KEY, unet, clean)], tmp_path, (2,))
    assert [row["transform"] for row in rows] == ["full fine-tune, extracted at rank 2"] * 2
    assert rows[0]["log10_p"] < -20 and rows[1]["log10_p"] > -4


def test_what_is_no_plain_lora_is_left_out(tmp_path):
    save_file({"unet.x.hada_w1_a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors") is None
