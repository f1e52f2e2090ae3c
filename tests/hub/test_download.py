"""A marked pipeline pulled from a Hub: the record comes along, and no weight is downloaded twice."""

import pytest
from _shipped import ASSETS

from tests.hub_server import HubServer


CODE = """
from aiao_diffusers import WatermarkedStableDiffusionPipeline, WatermarkKey
pipe = WatermarkedStableDiffusionPipeline.from_pretrained("owner/{name}")
key = WatermarkKey(bytes(range(32)), "Demo")
print(pipe.record is not None and pipe.verify(key).verdict)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "said"), [("marked", "verified"), ("base", "False")])
def test_from_pretrained_of_a_repository(server: HubServer, python, name, said):
    folder = ASSETS / name
    server.add_repo(f"owner/{name}", {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()})
    assert python(CODE.format(name=name)).strip().splitlines()[-1] == said
    weights = [r for r in server.requests("GET", r".*diffusion_pytorch_model\.safetensors") if r.status == 200]
    paths = [r.path for r in weights]
    assert len(paths) == len(set(paths))
