"""The walk through a model tree over HTTP; no weights are involved."""

from datetime import UTC, datetime

import pytest

from aiao_diffusers.errors import ConfigError, HubError
from aiao_diffusers.hub.model_tree import walk
from tests.hub_server import EndlessPages, HubServer, RateLimit, ServerError
from tests.samples import card, safetensors


def child(server: HubServer, name: str, *bases: str, year: int = 2025, **fields: object) -> None:
    files = {"README.md": card(base_model=list(bases), **fields), "w.safetensors": safetensors("conv.weight")}
    server.add_repo(name, files, date=datetime(year, 6, 1, tzinfo=UTC))


@pytest.fixture
def tree(hub: HubServer) -> HubServer:
    hub.app.page_size = 2
    hub.add_repo("acme/sd", {"README.md": card(base_model="u/deep")})  # a cycle through three levels
    child(hub, "u/tuned", "acme/sd", year=2020)
    child(hub, "u/lora", "acme/sd", base_model_relation="adapter")
    child(hub, "u/merge", "acme/sd", "u/tuned")  # found twice
    child(hub, "u/of-tuned", "u/tuned", base_model_relation="adapter")
    child(hub, "u/deep", "u/of-tuned", base_model_relation="quantized", year=2024)
    child(hub, "u/self", "u/self", "acme/sd")
    child(hub, "v/stranger", "other/model")
    return hub


def names(found: object) -> set[str]:
    return {node.repo_id for node in found.nodes}  # type: ignore[attr-defined]


def test_all_levels_once_each(tree: HubServer) -> None:
    found = walk("acme/sd")
    assert sorted(n.repo_id for n in found.nodes) == ["u/deep", "u/lora", "u/merge", "u/of-tuned", "u/self", "u/tuned"]
    nodes = {n.repo_id: n for n in found.nodes}
    assert nodes["u/deep"].lineage == ("acme/sd", "u/tuned", "u/of-tuned")
    relations = {name: node.relation for name, node in nodes.items()}
    assert relations == {
        **{"u/deep": "quantized", "u/lora": "adapter", "u/merge": "merge", "u/of-tuned": "adapter"},
        **{"u/self": "merge", "u/tuned": "finetune"},
    }
    assert nodes["u/lora"].sha == tree.sha("u/lora") and not found.warnings


def test_relation_and_date_filter_what_is_kept_not_what_is_walked(tree: HubServer) -> None:
    assert names(walk("acme/sd", relations=["adapter"])) == {"u/lora", "u/of-tuned"}
    assert names(walk("acme/sd", since="2024-06-02")) == {"u/lora", "u/merge", "u/of-tuned", "u/self"}
    assert names(walk("acme/sd", since="2024-06-01")) >= {"u/deep"}
    with pytest.raises(ConfigError, match="relation 'child'"):
        walk("acme/sd", relations=["child"])
    with pytest.raises(ConfigError, match="ISO date"):
        walk("acme/sd", since="yesterday")


def test_undeclared_by_list_author_and_search(tree: HubServer) -> None:
    found = walk("acme/sd", repos=["x/none", "u/lora"], authors=["v"], search=["tuned"])
    nodes = {n.repo_id: n for n in found.nodes}
    assert nodes["x/none"].found_by == "list" and nodes["x/none"].sha is None
    assert nodes["u/lora"].lineage == ("acme/sd",)  # named, and in the tree all the same
    assert nodes["v/stranger"].found_by == "author v" and not nodes["v/stranger"].lineage
    assert nodes["u/tuned"].found_by == "tree"


@pytest.mark.parametrize("mode", ["repeat", "empty", "fresh"])
def test_endless_pages_end(tree: HubServer, mode: str) -> None:
    tree.faults.add(EndlessPages(mode=mode, path="^/api/models"))  # type: ignore[arg-type]
    found = walk("acme/sd", limit=20)
    assert names(found) >= {"u/lora", "u/merge", "u/self", "u/tuned"} and len(found.nodes) <= 20
    assert any("does not end" in text or "limit" in text for text in found.warnings)
    assert len(tree.log) < 200


def test_waits_as_told_and_says_what_is_missing(tree: HubServer) -> None:
    tree.faults.add(RateLimit(path="base_model:acme/sd", retry_after=3, times=2))
    tree.faults.add(ServerError(path="base_model:u/of-tuned"))
    found = walk("acme/sd")
    assert tree.waits[:2] == [3.0, 3.0]  # type: ignore[attr-defined]
    assert "u/of-tuned" in names(found) and "u/deep" not in names(found)
    assert any("children of u/of-tuned could not be listed" in text for text in found.warnings)
    tree.faults.add(ServerError(path="base_model:acme/sd"))
    with pytest.raises(HubError):
        walk("acme/sd")
