"""peft's own list of methods: each is read, named, or no adapter of a denoiser's weights."""

import pytest
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

from aiao_diffusers.formats.unread_kinds import find_unread_kind, name_of_peft_type


READ = {"LORA", "LOHA", "LOKR", "OFT", "BOFT", "GLORA", "VERA", "LN_TUNING"}
OF_LANGUAGE = {
    *("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"),
    *("TRAINABLE_TOKENS", "SHADOW"),
}
"""Prompts, tokens and caches of language models."""
AS_LORA = {"ADALORA", "XLORA"}
"""Told by peft_type, and by roles beside those of a LoRA."""


@pytest.mark.parametrize("kind", sorted(str(kind.value) for kind in PEFT_TYPE_TO_PREFIX_MAPPING))
def test_methods_of_peft(kind):
    prefix = next(v for k, v in PEFT_TYPE_TO_PREFIX_MAPPING.items() if k.value == kind)
    named = find_unread_kind([f"base_model.model.conv_in.{prefix}x"])
    if kind in READ | OF_LANGUAGE | AS_LORA:
        assert named is None and name_of_peft_type(kind) is None
    else:
        assert named is not None and named == name_of_peft_type(kind)


def test_plain_keys_are_of_no_kind():
    assert find_unread_kind([]) is None
    assert find_unread_kind(["conv_in.weight", "lora_unet_conv_in.lora_up.weight", "image_proj.proj.weight"]) is None
    assert find_unread_kind(["a.delta", "conv_in.weight"]) is None
    assert name_of_peft_type(None) is None and name_of_peft_type(["IA3"]) is None
