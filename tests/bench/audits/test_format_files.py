"""Every format's file acts as the weights patched by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiao_diffusers.bench.audits import format_files, fuzz
from aiao_diffusers.bench.audits.model_files import layouts, which_file
from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import AIAOError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import detect
from aiao_diffusers.formats.lora import apply_lora


SINGLE = 4  # a single weight may be off by more than the denoiser's output, which averages over many


@pytest.fixture(scope="module")
def change():
    return fuzz.small_change(fuzz.small_unet())


def oracle(change: format_files.Change, fmt: format_files.Format) -> dict[str, torch.Tensor]:
    return fmt.merged(change)


@pytest.mark.parametrize("fmt", format_files.ADAPTERS, ids=lambda f: f.name)
def test_an_adapter_is_its_patched_weights(change, tmp_path, fmt):
    source, before = fmt.write(change, tmp_path), tensor_sha256(change.base)
    wanted = oracle(change, fmt)
    assert detect(source, fmt.weight_name).kind == fmt.kind
    with apply_lora(change.base, source, weight_name=fmt.weight_name) as loaded:
        off = max(float((v - wanted[k]).abs().max()) for k, v in change.base.state_dict().items())
    assert tensor_sha256(change.base) == before
    assert loaded.modules == len(fmt.modules(change)) and not loaded.unused_keys
    size = max(float(change.delta(m).abs().max()) for m in fmt.modules(change))
    assert off <= max(SINGLE * fmt.rounding, 1e-5) * size
    assert size > 0.1


WHOLE = (*format_files.whole_models(), *layouts(), *which_file())


@pytest.mark.parametrize("fmt", WHOLE, ids=lambda f: f.name)
def test_a_whole_model_is_its_patched_weights(change, tmp_path, fmt):
    source, wanted = fmt.write(change, tmp_path), oracle(change, fmt)
    assert detect(source).kind == fmt.kind
    state = load_denoiser(source, base=change.base, dtype=torch.float32).state_dict()
    assert state.keys() == wanted.keys()
    size = max(float(change.delta(m).abs().max()) for m in change.factors)
    assert max(float((state[k] - wanted[k]).abs().max()) for k in state) <= max(SINGLE * fmt.rounding, 1e-6) * size


STOCK = [fmt for fmt in (*format_files.ADAPTERS, *WHOLE) if fmt.stock is not None]


@pytest.mark.parametrize("fmt", STOCK, ids=lambda f: f.name)
def test_a_stock_library_loads_the_patched_weights(change, tmp_path, fmt):
    """The two oracles agree: what was written is what a stranger's own tool would run."""
    state, wanted = fmt.stock(change, fmt.write(change, tmp_path)).state_dict(), oracle(change, fmt)
    assert state.keys() == wanted.keys() and fmt.oracle in ("diffusers", "peft")
    size = max(float(change.delta(m).abs().max()) for m in fmt.modules(change))
    assert max(float((state[k] - wanted[k]).abs().max()) for k in state) <= max(SINGLE * fmt.rounding, 1e-5) * size


def test_every_format_has_a_name_and_a_heading_of_its_own():
    names = [fmt.name for members in format_files.groups().values() for fmt in members]
    assert len(names) == len(set(names)) > 100
    files = [fmt.name for fmt in format_files.in_files()]
    in_memory = [fmt.name for fmt in format_files.groups()["In memory"]]
    assert sorted(files + in_memory) == sorted(names)


@pytest.mark.parametrize("fmt", format_files.NO_FINE_TUNE, ids=lambda f: f.name)
def test_what_is_no_fine_tune_never_loads(change, tmp_path, fmt):
    source, before = fmt.write(change, tmp_path), tensor_sha256(change.base)
    with pytest.raises(AIAOError), apply_lora(change.base, source):
        pass
    with pytest.raises(AIAOError):
        load_denoiser(source, base=change.base)
    assert tensor_sha256(change.base) == before


SAME = [fmt for fmt in format_files.ADAPTERS if fmt.merge is None]


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(rank=st.integers(1, 6), seed=st.integers(0, 2**16), fmt=st.sampled_from(SAME))
def test_any_change_in_any_format(tmp_path_factory, rank, seed, fmt):
    base = fuzz.small_unet()
    generator, factors = torch.Generator().manual_seed(seed), {}
    for module in fuzz.small_change(base).factors:
        out, inner, *kernel = base.get_submodule(module).weight.shape
        down = torch.randn(rank, inner, *kernel, generator=generator)
        factors[module] = (down, torch.randn(out, rank, *[1] * len(kernel), generator=generator))
    change = format_files.Change(base, factors)
    source = fmt.write(change, tmp_path_factory.mktemp("any"))
    wanted, size = oracle(change, fmt), max(float(change.delta(m).abs().max()) for m in factors)
    with apply_lora(base, source, weight_name=fmt.weight_name):
        off = max(float((v - wanted[k]).abs().max()) for k, v in base.state_dict().items())
    assert off <= max(SINGLE * fmt.rounding, 1e-5) * size
