"""Our own mark as a method of the benchmark."""

import warnings

import pytest
import torch
from _peers import ASKED, KEY
from _shipped import BASE

from aiao_diffusers.bench.context import AttackContext, open_data, open_pipe
from aiao_diffusers.bench.peers.aiao import AIAO
from aiao_diffusers.errors import ConfigError
from aiao_diffusers.mark.record import WatermarkRecord


@pytest.mark.slow
def test_a_mark_is_carried_by_the_layers_asked_for(context):
    chosen = {
        name: AIAO(train="lazy", carrier=name)._profile(context.copy_of_base(), context).laziest(context.base, 0.3)
        for name in ("lazy", "busy", "random")
    }
    moved = AIAO(train="lazy")._profile(context.copy_of_base(), context)
    assert chosen["lazy"] == moved.laziest(context.base, 0.3) and chosen["busy"] == moved.busiest(context.base, 0.3)
    assert chosen["lazy"][0] != chosen["busy"][0]
    assert set(chosen["random"]) not in (set(chosen["lazy"]), set(chosen["busy"]))
    with pytest.raises(ConfigError, match="did you mean 'busy'"):
        AIAO(train="lazy", carrier="bussy")


@pytest.mark.slow
def test_the_look_beyond_the_twin_is_taken_where_others_verify_too(tmp_path):
    places = (BASE.parent,)
    pipe = open_pipe("base", places)
    data = open_data(pipe, "latents/noto.safetensors", places).take(torch.arange(4))
    context = AttackContext(pipe, data, data, 0, tmp_path / "shared", places)
    looks, marked = {}, context.copy_of_base()
    for twin in (False, True):
        method = AIAO(marked="marked", key="demo.key", twin=twin)
        method.embed(marked, KEY, context, tmp_path)
        found = method.verify(marked, method.own_key(KEY, context), context, tmp_path, **ASKED)
        assert found.verdict == "verified" and found.look in found.looks
        looks[twin] = found.looks
    beyond = set(looks[True]) - set(looks[False])
    assert beyond == {"beyond the twin x1, ranks", "beyond the twin x1, whitened"}
    assert max(looks[True][label] for label in beyond) < -20
    control = method.verify(marked, method.own_key(KEY, context).child("wrong"), context, tmp_path, **ASKED)
    assert control.verdict == "not_verified" and min(control.looks.values()) > -5


@pytest.mark.slow
def test_a_committed_mark_is_of_the_scheme_that_binds_and_other_settings_keep_their_identity(context, tmp_path):
    few = {"steps": 1, "batch_size": 2, "in_sites": 1, "out_sites": 2, "max_price": None, "lineage": 0.0}
    for committed, scheme in ((True, "aiao-2"), (False, "aiao-1")):
        method = AIAO(committed=committed, **few)
        assert ("committed" in method.settings) == committed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a mark of one step is weak
            method.embed(context.copy_of_base(), KEY, context, tmp_path / scheme)
        record = WatermarkRecord.load(tmp_path / scheme)
        assert record.scheme == scheme and record.belongs_to(KEY)
