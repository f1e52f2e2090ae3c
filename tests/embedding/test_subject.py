"""What is known of a denoiser before it is marked."""

import pytest
from _tiny import LEARN, learner

from aiao_diffusers import EmbedConfig, WatermarkKey
from aiao_diffusers.denoiser.hashes import weights_sha256
from aiao_diffusers.denoiser.sites import trace_on
from aiao_diffusers.embedding.subject import Subject, choose_marks, observe_clean_twin
from aiao_diffusers.errors import ConfigError


KEY = WatermarkKey(bytes(range(32)), "Demo")


@pytest.fixture
def subject() -> Subject:
    unet, data, scheduler = learner()
    return Subject(unet, scheduler, data, trace_on(unet, data), EmbedConfig(**LEARN, pairs=True))


def test_the_clean_twin_is_read_and_left_as_it_is(subject):
    before = weights_sha256(subject.denoiser)
    twin = observe_clean_twin(subject, None)
    assert twin.sha256 == before == weights_sha256(subject.denoiser)
    assert set(twin.gains) <= {site.name for site in subject.sites} and max(twin.gains.values()) > 0
    assert set(twin.reference.leaving) | set(twin.reference.entering) <= {site.name for site in subject.sites}
    other = observe_clean_twin(subject, None)
    assert (other.reference.sha256, other.gains) == (twin.reference.sha256, twin.gains)


def test_a_further_mark_takes_the_gains_of_the_first(subject, begun):
    assert observe_clean_twin(subject, begun[1]).gains == begun[1].factors


def test_each_key_has_its_mark_and_silent_sites_none(subject):
    keys = [KEY.child(str(number)) for number in range(8)]
    free = choose_marks(subject, {}, keys)
    assert all((len(mark.ins), len(mark.outs), mark.pairs) == (2, 3, True) for mark in free)
    silenced = free[0].ins[0].name
    marks = choose_marks(subject, {silenced: 0.0}, keys)
    assert not any(site.name == silenced for mark in marks for site in mark.ins)
    with pytest.raises(ConfigError, match="in-sites asked for"):
        choose_marks(subject, {site.name: 0.0 for site in subject.sites}, keys)
