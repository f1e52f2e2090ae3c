"""What the Hub derives from a commit's files: card data, tags, library, base models and their relation."""

import json
import re
from collections.abc import Mapping
from typing import Any

from . import cards
from .blobs import Blob
from .store import Commit, Entry, Repo


MAX_HEADER = 4 * 1024 * 1024
MAX_JSON = 1024 * 1024


def describe(repo: Repo, commit: Commit) -> dict[str, Any]:
    """`cardData`, `tags`, `library_name`, `pipeline_tag`, `config` and `base_models` of a commit, computed once."""
    if commit.oid not in repo.memo:
        repo.memo[commit.oid] = _describe(repo, commit.tree)
    return dict(repo.memo[commit.oid])


def _describe(repo: Repo, tree: Mapping[str, Entry]) -> dict[str, Any]:
    card = _card(tree)
    config = _config(tree)
    library = card.get("library_name")
    if not isinstance(library, str):
        library = "diffusers" if "diffusers" in config else "peft" if "peft" in config else None
    tags = [library] if library else []
    if any(path.endswith(".safetensors") for path in tree):
        tags.append("safetensors")
    if class_name := config.get("diffusers", {}).get("_class_name"):
        tags.append(f"diffusers:{class_name}")
    tags += _strings(card.get("tags")) + _strings(card.get("language"))
    tags += [f"dataset:{name}" for name in _strings(card.get("datasets"))]
    base_models = _strings(card.get("base_model"))
    relation = _relation(card, tree) if base_models else None
    tags += [f"base_model:{base}" for base in base_models]
    tags += [f"base_model:{relation}:{base}" for base in base_models]
    tags += [f"license:{name}" for name in _strings(card.get("license"))]
    tags.append("region:us")
    pipeline_tag = card.get("pipeline_tag")
    return {
        "cardData": card or None,
        "tags": list(dict.fromkeys(tags)),
        "library_name": library,
        "pipeline_tag": pipeline_tag if isinstance(pipeline_tag, str) else None,
        "config": config,
        "base_models": base_models,
    }


def _card(tree: Mapping[str, Entry]) -> dict[str, Any]:
    """A card that cannot be read counts as none: the repo stays listed, without tags."""
    if "README.md" not in tree:
        return {}
    try:
        return cards.metadata(tree["README.md"].blob.read(0, MAX_JSON).decode())
    except (cards.CardError, UnicodeDecodeError):
        return {}


def _config(tree: Mapping[str, Entry]) -> dict[str, Any]:
    """The excerpt of config files that the Hub lists."""
    config: dict[str, Any] = {}
    pipeline = _json(tree, "model_index.json")
    if "_class_name" in pipeline:
        config["diffusers"] = {"_class_name": pipeline["_class_name"]}
    adapter = _json(tree, "adapter_config.json")
    if adapter:
        config["peft"] = {name: adapter.get(name) for name in ("base_model_name_or_path", "task_type")}
    return config


def _json(tree: Mapping[str, Entry], path: str) -> dict[str, Any]:
    if path not in tree or tree[path].blob.size > MAX_JSON:
        return {}
    try:
        data = json.loads(tree[path].blob.read())
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _relation(card: Mapping[str, Any], tree: Mapping[str, Entry]) -> str:
    """The card's word, else a guess from the files: adapter, quantized, merge, finetune."""
    if card.get("base_model_relation") in cards.RELATIONS:
        return str(card["base_model_relation"])
    if "adapter_config.json" in tree or any(_is_lora(path, entry.blob) for path, entry in tree.items()):
        return "adapter"
    if any(path.endswith(".gguf") for path in tree):
        return "quantized"
    if len(_strings(card.get("base_model"))) > 1 or {"merge", "mergekit"} & set(_strings(card.get("tags"))):
        return "merge"
    return "finetune"


def _is_lora(path: str, blob: Blob) -> bool:
    if not path.endswith(".safetensors"):
        return False
    if "lora" in path.rsplit("/", 1)[-1].lower():
        return True
    size = int.from_bytes(blob.read(0, 8), "little")
    names = blob.read(8, min(size, MAX_HEADER))
    return re.search(rb'"[^"]*(lora_[AB]|lora_up|lora_down|lora\.up|lora\.down)[^"]*"\s*:', names) is not None


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
