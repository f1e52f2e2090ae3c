"""Real-world set-ups of a denoiser: each reads as the plain one does, or is refused; nothing is read wrongly in silence."""

from types import SimpleNamespace

import pytest
import torch
from _tiny import tiny_unet
from accelerate import cpu_offload
from peft import LoraConfig, LoraModel, PeftMixedModel, PeftModel, inject_adapter_in_model
from torch import nn

from aiao_diffusers.denoiser import setup
from aiao_diffusers.denoiser.call import CallInputs
from aiao_diffusers.denoiser.hashes import weights_sha256
from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.denoiser.setup import (
    Values,
    adapters,
    eval_mode,
    for_reading,
    placement,
    running_values,
    without_ip_adapter,
)
from aiao_diffusers.denoiser.sites import attention_modules, trace, unwrap
from aiao_diffusers.denoiser.trigger import apply_trigger, difference
from aiao_diffusers.errors import SiteError
from aiao_diffusers.mark.key import WatermarkKey
from aiao_diffusers.mark.reading import read_subpath
from aiao_diffusers.mark.subpath import sub_path


KEY = WatermarkKey(bytes(range(32)), "Demo")


RANDOM = torch.Generator().manual_seed(3)


SAMPLE, TEXT = torch.randn(2, 4, 8, 8, generator=RANDOM), torch.randn(2, 5, 12, generator=RANDOM)


TIMES = torch.tensor([10, 500])


def forward(unet):
    device, dtype = placement(unet)
    with torch.no_grad():
        return unet(SAMPLE.to(device, dtype), TIMES.to(device), TEXT.to(device, dtype)).sample


def responses(unet, rows=slice(None)):
    """d of every out-site, `(out-sites, C)`, stacked over sites of one width; as `verify` reads it."""
    device, dtype = placement(unet)
    path = sub_path(SITES[:2], SITES[-2:])
    with without_ip_adapter(unet), instrument(unet, [s.name for s in SITES]) as instrumented:
        sample, text = SAMPLE[rows].to(device, dtype), TEXT[rows].to(device, dtype)
        keywords = {"encoder_hidden_states": text}
        readings = read_subpath(instrumented, KEY, path, 1.0, CallInputs(sample, TIMES[rows].to(device), keywords))
    return torch.stack([reading.d for reading in readings])


_plain = tiny_unet()


SITES = trace(_plain, lambda: forward(_plain))


PLAIN = responses(_plain)


def same(a, b, tolerance=1e-5):
    assert a.abs().max() > 1e-3  # there is something to compare
    return torch.allclose(a, b, atol=tolerance, rtol=tolerance)


def test_plain_answer_by_hand():
    """The reference of this file, without `instrument`: two forwards, hooks in place of processors."""

    class Armed:
        def __init__(self, inner, mask):
            self.inner, self.mask = inner, mask

        def __call__(self, *args, **kwargs):
            return apply_trigger(self.inner(*args, **kwargs), self.mask, 1.0)

    unet = tiny_unet()
    modules = attention_modules(unet)

    def entering():
        seen = {}
        hooks = [
            modules[s.name].register_forward_pre_hook(lambda m, args, n=s.name: seen.update({n: args[0]}))
            for s in SITES[-2:]
        ]
        forward(unet)
        for hook in hooks:
            hook.remove()
        return seen

    clean = entering()
    for site in SITES[:2]:
        mask = torch.from_numpy(KEY.trigger_mask(site.name, site.width_out))
        modules[site.name].processor = Armed(modules[site.name].processor, mask)
    triggered = entering()
    assert same(PLAIN, torch.stack([difference(triggered[s.name], clean[s.name]) for s in SITES[-2:]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    unet = tiny_unet().to(dtype)
    assert placement(unet) == (torch.device("cpu"), dtype)
    assert nn.functional.cosine_similarity(responses(unet), PLAIN).min() > 0.99


class TestForReading:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_copy_of_the_same_numbers(self, dtype):
        unet = tiny_unet().to(dtype).train()
        before = unet.state_dict()
        read, notes = for_reading(unet)
        assert read is not unet and str(dtype) in notes[0] and placement(read)[1] == torch.float32
        assert weights_sha256(read) == weights_sha256(unet) and read.training
        assert all(p.dtype == dtype and p.requires_grad for p in unet.parameters())
        assert all(
            value is unet.state_dict()[name] or torch.equal(value, before[name]) for name, value in before.items()
        )
        read.conv_in.weight.data.zero_()
        assert unet.conv_in.weight.abs().max() > 0
        assert torch.equal(responses(for_reading(unet)[0]), responses(tiny_unet().to(dtype).float()))

    def test_what_needs_no_copy(self):
        for unet in (tiny_unet(), cpu_offload(tiny_unet().half(), execution_device="cpu")):
            assert for_reading(unet) == (unet, ())
        casting = tiny_unet()
        casting.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        assert for_reading(casting) == (casting, ())

    def test_shared_weights_stay_shared_and_integers_integers(self):
        unet = tiny_unet().half()
        unet.conv_out.bias = unet.up_blocks[1].resnets[0].norm1.bias
        unet.register_buffer("steps", torch.arange(3))
        read, _ = for_reading(unet)
        assert read.conv_out.bias is read.up_blocks[1].resnets[0].norm1.bias and read.steps.dtype == torch.int64

    def test_where_memory_holds_none(self, monkeypatch):
        monkeypatch.setattr(setup, "virtual_memory", lambda: SimpleNamespace(available=1000))
        unet = tiny_unet().half()
        read, notes = for_reading(unet)
        assert read is unet and "memory holds no float32 copy" in notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wrapper", "in place", "blocks", "assigned"])
def test_compiled(way):
    runs = []

    def backend(graph, inputs):
        def counted(*args):
            runs.append(graph)
            return graph(*args)

        return counted

    unet = tiny_unet()
    if way == "wrapper":
        compiled = torch.compile(unet, backend=backend)
    elif way == "assigned":
        compiled = unet
        unet.mid_block = torch.compile(unet.mid_block, backend=backend)
        unet.up_blocks[1] = torch.compile(unet.up_blocks[1], backend=backend)
    elif way == "in place":
        compiled = unet
        unet.compile(backend=backend)
    else:
        compiled = unet
        unet._repeated_blocks = ["BasicTransformerBlock"]
        unet.compile_repeated_blocks(backend=backend)
    before = forward(compiled)
    assert runs
    runs.clear()
    assert same(responses(compiled), PLAIN)
    assert not runs  # read eagerly
    assert torch.equal(forward(compiled), before) and runs  # and compiled again afterwards


def test_gradient_checkpointing():
    unet = tiny_unet()
    unet.enable_gradient_checkpointing()
    assert torch.equal(responses(unet.train()), PLAIN)


def test_sliced_attention():
    unet = tiny_unet()
    unet.set_attention_slice("max")
    assert "Sliced" in type(next(iter(unet.attn_processors.values()))).__name__
    assert same(responses(unet), PLAIN)


def test_fused_projections():
    unet = tiny_unet()
    unet.fuse_qkv_projections()
    assert "Fused" in type(next(iter(unet.attn_processors.values()))).__name__
    assert same(responses(unet), PLAIN)


def test_layerwise_casting():
    unet = tiny_unet()
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert placement(unet)[1] == torch.float32
    assert nn.functional.cosine_similarity(responses(unet), PLAIN).min() > 0.9


def test_offloaded():
    """Weights that are on the meta device between forwards, as in sequential offloading."""
    unet = tiny_unet()
    cpu_offload(unet, execution_device=torch.device("cpu"))
    assert all(p.is_meta for p in unet.parameters())
    assert torch.equal(responses(unet), PLAIN)
    assert weights_sha256(unet) == weights_sha256(tiny_unet())
    assert all(p.is_meta for p in unet.parameters())  # the early stop leaves no weight behind


def test_offloaded_weights_of_the_outermost_module():
    def model():
        unet = tiny_unet()
        unet.register_parameter(
            "table", nn.Parameter(torch.full((3,), 0.3))
        )  # transformers have such: scale_shift_table
        return unet

    unet = model()
    cpu_offload(unet, execution_device=torch.device("cpu"))
    assert torch.equal(responses(unet), PLAIN)
    assert all(p.is_meta for p in unet.parameters())
    assert weights_sha256(unet) == weights_sha256(model()) != weights_sha256(tiny_unet())


def test_each_part_gets_its_own_mode_back():
    unet = tiny_unet().train()
    unet.mid_block.eval()
    with eval_mode(unet):
        assert not any(part.training for part in unet.modules())
    assert unet.training and not unet.mid_block.training and unet.down_blocks[0].training


class TestAdapters:
    def adapted(self, scale):
        unet = tiny_unet()
        unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]), "a")
        unet.set_adapters(["a"], [scale])
        for name, p in unet.named_parameters():
            if "lora_" in name:
                torch.manual_seed(len(name))
                nn.init.normal_(p, std=0.2)
        return unet

    def merged(self, scale):
        """The same adapter, added to the weights by hand."""
        source, unet = self.adapted(1.0), tiny_unet()
        for name, module in source.named_modules():
            if hasattr(module, "lora_A") and len(module.lora_A):
                delta = module.lora_B["a"].weight @ module.lora_A["a"].weight
                unet.get_submodule(name).weight.data += scale * delta.data
        return unet

    @pytest.mark.parametrize("scale", [1.0, 0.3])
    def test_scales_are_respected(self, scale):
        read = responses(self.adapted(scale))
        assert same(read, responses(self.merged(scale)))
        assert not same(read, PLAIN)

    @pytest.mark.slow
    @pytest.mark.parametrize("way", ["PeftModel", "PeftMixedModel", "get_base_model", "inject", "tuner"])
    def test_put_in_by_peft_alone(self, way):
        config = LoraConfig(r=2, target_modules=["to_q", "to_v"])
        if way == "inject":
            unet = inject_adapter_in_model(config, tiny_unet(), "mine")
        elif way == "tuner":
            unet = LoraModel(tiny_unet(), config, "mine")
        else:
            unet = (PeftMixedModel if way == "PeftMixedModel" else PeftModel)(tiny_unet(), config, adapter_name="mine")
        unet = unet.get_base_model() if way == "get_base_model" else unet
        plain = unwrap(unet)
        assert type(plain) is type(tiny_unet()) and adapters(plain) == ["mine"]
        assert same(responses(plain), PLAIN)
        with without_ip_adapter(plain) as notes:
            assert "['mine'] are active" in notes[0]

    def test_switched_off(self):
        unet = self.adapted(1.0)
        unet.disable_adapters()
        assert adapters(unet) == [] and same(responses(unet), PLAIN)
        with without_ip_adapter(unet) as notes:
            assert "['a'] are loaded and switched off" in notes[0]
        assert weights_sha256(running_values(unet)) == weights_sha256(tiny_unet())
        unet.enable_adapters()
        assert weights_sha256(running_values(unet)) == weights_sha256(unet) != weights_sha256(tiny_unet())

    def test_report_says_so(self):
        unet = self.adapted(1.0)
        assert adapters(unet) == ["a"] and adapters(tiny_unet()) == []
        with without_ip_adapter(unet) as notes:
            assert "['a'] are active" in notes[0]


class TestIPAdapter:
    def loaded(self):
        unet = tiny_unet()
        image = {"proj.weight": torch.randn(48, 6), "proj.bias": torch.zeros(48)}
        image |= {"norm.weight": torch.ones(12), "norm.bias": torch.zeros(12)}
        keys = {}
        for number, name in enumerate(n for n in unet.attn_processors if "attn2" in n):
            width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            keys |= {f"{2 * number + 1}.to_{part}_ip.weight": torch.randn(width, 12) for part in "kv"}
        unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": keys}])
        return unet

    def test_is_left_out_and_put_back(self):
        unet = self.loaded()

        def with_image():
            with torch.no_grad():
                return unet(SAMPLE, TIMES, TEXT, added_cond_kwargs={"image_embeds": [torch.ones(2, 1, 6)]}).sample

        before, keys = with_image(), list(unet.state_dict())
        with pytest.raises((ValueError, TypeError)):
            forward(unet)  # so the probe bank alone could not be read
        assert same(responses(unet), PLAIN)
        with without_ip_adapter(unet) as notes:
            assert "IP-Adapter" in notes[0]
            assert weights_sha256(unet) == weights_sha256(tiny_unet())
        assert torch.equal(with_image(), before) and list(unet.state_dict()) == keys

    def test_is_put_back_after_an_exception(self):
        unet = self.loaded()
        installed = unet.attn_processors
        with pytest.raises(RuntimeError, match="planted"), without_ip_adapter(unet):
            raise RuntimeError("planted")
        assert all(unet.attn_processors[name] is processor for name, processor in installed.items())
        assert unet.config.encoder_hid_dim_type == "ip_image_proj"


class TestReplacedProcessors:
    @pytest.mark.parametrize("change", ["set_attention_slice", "fuse_qkv_projections", "one in-site"])
    def test_is_refused(self, change):
        unet, path = tiny_unet(), sub_path(SITES[:2], SITES[-2:])
        keywords = {"encoder_hidden_states": TEXT}
        with instrument(unet, [s.name for s in SITES]) as instrumented:
            assert same(
                torch.stack(
                    [r.d for r in read_subpath(instrumented, KEY, path, 1.0, CallInputs(SAMPLE, TIMES, keywords))]
                ),
                PLAIN,
            )
            if change == "set_attention_slice":
                unet.set_attention_slice("max")
            elif change == "fuse_qkv_projections":
                unet.fuse_qkv_projections()
            else:
                module = attention_modules(unet)[SITES[0].name]
                module.set_processor(module.processor.inner)
            with pytest.raises(SiteError, match="replaced after wrapping"):
                read_subpath(instrumented, KEY, path, 1.0, CallInputs(SAMPLE, TIMES, keywords))
        assert not any("AIAO" in type(p).__name__ for p in unet.attn_processors.values())

    def test_in_site_that_never_runs(self):
        unet, path = tiny_unet(), sub_path(SITES[:2], SITES[-2:])
        block = unet.get_submodule(SITES[0].name.rpartition(".")[0])
        block.forward = lambda hidden_states, *args, **kwargs: hidden_states
        with (
            instrument(unet, [s.name for s in SITES]) as instrumented,
            pytest.raises(SiteError, match="no forward reached"),
        ):
            read_subpath(instrumented, KEY, path, 1.0, CallInputs(SAMPLE, TIMES, {"encoder_hidden_states": TEXT}))


def test_stops_after_the_last_out_site():
    unet = tiny_unet()
    ran = []
    for name, module in unet.named_modules():
        module.register_forward_hook(lambda m, args, output, n=name: ran.append(n))
    responses(unet)
    assert ran[-1] == SITES[-1].name
    assert not {"conv_norm_out", "conv_out", ""} & set(ran)
    early = sub_path(SITES[:1], SITES[1:2])
    ran.clear()
    with instrument(unet, [s.name for s in SITES]) as instrumented:
        read_subpath(instrumented, KEY, early, 1.0, CallInputs(SAMPLE, TIMES, {"encoder_hidden_states": TEXT}))
    assert ran[-1] == SITES[1].name and not any(n.startswith("up_blocks") for n in ran)


def test_independent_of_batch_size():
    unet = tiny_unet()
    alone = [responses(unet, slice(i, i + 1)) for i in range(2)]
    assert same((alone[0] + alone[1]) / 2, PLAIN, 1e-4)


def test_values_are_no_copies():
    unet = tiny_unet().to(torch.bfloat16)
    values = Values(unet)
    assert len(values) == len(unet.state_dict()) and list(values) == list(unet.state_dict())
    assert all(values[name].data_ptr() == p.data_ptr() for name, p in unet.named_parameters())
