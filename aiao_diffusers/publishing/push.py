"""Publish a marked model on the Hub: everything is checked here first, then one commit carries all of it.

What a push never does: send a secret, weights that the key does not read, or the clean twin; overwrite a README's text;
leave a repository with weights and no record. Uploading is `huggingface_hub`'s own: what the Hub holds is not sent twice,
so a push that was cut is mended by running it again.
"""

import hashlib
import re
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects
from torch import nn

from ..denoiser.hashes import weights_sha256
from ..denoiser.setup import denoiser_of
from ..deprecation import renamed_arguments
from ..errors import AIAOError, CardError, ConfigError, HubError, PushRefusedError, RecordError, SuspectError
from ..files.paths import PICKLE_STARTS, PICKLE_SUFFIXES
from ..files.safetensors_header import load_tensors, read_header
from ..files.strict_json import read_json
from ..formats.checkpoint import load_denoiser
from ..formats.detect import EMA_PREFIX, detect_denoisers, kind_of_keys
from ..mark.key import BOUND_SCHEME, WatermarkKey
from ..mark.record import COMMITMENT, DOCUMENT, FOLDER, WatermarkRecord, has_record
from ..verification.suspect import find_record, label_of, local_path
from ..verification.verify import verify
from .cards import MAX_README_BYTES, CardFields, eval_results_yaml, is_untouched, marked_model, own_text
from .secrets import check_secrets, list_files


README, RESULTS, INDEX = "README.md", ".eval_results/aiao.yaml", "model_index.json"
_UNCHECKED = PICKLE_SUFFIXES | {".gguf", ".onnx", ".msgpack", ".h5", ".tflite"}
_CONTAINERS = (b"GGUF", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")
HTTP_ERRORS: tuple[Any, ...] = HfHubHTTPError.__bases__  # whichever HTTP library the installed client uses
_RERUN = "run the same push again: what the Hub holds is not sent twice"
_ADVICE = {
    401: "log in with `hf auth login` or pass token=",
    403: "this token may not write there: use one with write access, or create_pr=True to propose the change",
    404: "check the repository's name, the revision and that your token may see it",
    412: "somebody else committed meanwhile: run the push again on top of that",
}


@renamed_arguments(clean_base="clean_twin")
def push(
    source: Any,
    repo: str,
    key: WatermarkKey | None = None,
    *,
    clean_twin: Any = None,
    card: CardFields | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Publish a marked model with its record and card, in one commit.

    Args:
        source: a marked pipeline, or the folder it was saved to. The folder is not changed.
        repo (`str`): `user/name`; created when it does not exist.
        key (`WatermarkKey`, *optional*): must be read out of the weights with p <= 1e-6, and no file may hold it. Without a
            key the weights must be those that the record names, value for value.
        clean_twin: the owner's unmarked original (a pipeline, denoiser, folder or repository), which the upload must not be.
        card (`CardFields`, *optional*): licence, base model, tags, data sets and results for the card.
        private (`bool`, *optional*): of a new repository; True refuses one that exists and is public.
        create_pr (`bool`, defaults to False): open a pull request instead of committing.
        revision (`str`, *optional*): branch to commit to, made when missing, or `refs/pr/N`; default `main`.
        commit_message (`str`, *optional*): first line of the commit.
        token (`str`, *optional*): default: the one of `hf auth login` or HF_TOKEN.
    Returns:
        `huggingface_hub.CommitInfo`; when nothing changed, that of the commit that is there.
    Raises:
        PushRefusedError: see above; nothing was sent.
        RecordError: no record, or an altered one.
        CardError: a README that cannot be joined with the card, or one edited on the Hub that the folder's would overwrite.
        HubError: the request failed; the message says what to do.
        ConfigError: create_pr with a revision.
    """
    if create_pr and revision not in (None, "main"):
        raise ConfigError(f"a pull request is opened against main: leave out create_pr or revision={revision!r}.")
    with _stage(source) as folder:
        if not has_record(folder):
            raise RecordError(
                f"'{label_of(source)}' carries no watermark record: mark it with `aiao embed` first, or save the record of "
                "your EmbedReport into the folder."
            )
        check_secrets(folder, key)
        check_weights(folder, key, clean_twin, token)
        return _publish(folder, repo, card or CardFields(), private, create_pr, revision, commit_message, token)


@contextmanager
def _stage(source: Any) -> Iterator[Path]:
    """The folder to publish; a pipeline is saved to a temporary one for the length of the block."""
    if isinstance(source, str | Path):
        if not Path(source).is_dir():
            raise SuspectError(f"'{source}' is no folder: pass the one that the marked model was saved to.")
        yield Path(source)
        return
    if not hasattr(source, "save_pretrained"):
        raise SuspectError(f"a {type(source).__name__} cannot be pushed: pass a pipeline or a folder.")
    with tempfile.TemporaryDirectory() as scratch:
        source.save_pretrained(scratch)
        record = find_record(source)
        if record is not None:
            record.save(scratch)
        yield Path(scratch)


def check_weights(
    folder: Path, key: WatermarkKey | None, clean_twin: Any = None, token: str | bool | None = None
) -> None:
    """Refuse weights that are the clean twin's, that do not carry the mark, or that could not be looked at.

    Args:
        folder (`Path`): of the marked pipeline, with its record.
        key (`WatermarkKey`, *optional*): must be read out of the weights; None: their hash must be the record's.
        clean_twin: the owner's unmarked original, as for `push`.
        token (`str`, *optional*): for a clean twin on the Hub.
    Raises:
        PushRefusedError: naming what is wrong and the fix.
    """
    record = WatermarkRecord.load(folder)
    _check_commitment(folder, record)
    if key is not None and not record.belongs_to(key):
        raise PushRefusedError(f"the record is of {record.owner!r} and commits to another key: pass that key.")
    if (folder / INDEX).is_file():
        name = read_json(folder / INDEX).get("_class_name")
        if not isinstance(name, str) or not hasattr(diffusers, name):
            raise PushRefusedError(f"model_index.json names {name!r}, no class of diffusers: save the pipeline again.")
    first, *others = detect_denoisers(folder).values()
    _check_other_files(folder, [first.path, *(other.path for other in others)])
    denoiser = load_denoiser(first, dtype=torch.float32)
    _check_variants(folder, first.path, denoiser)
    digest = weights_sha256(denoiser)
    if clean_twin is not None and digest == weights_sha256(_load_clean_twin(clean_twin, token)):
        raise PushRefusedError(f"the weights in '{folder}' are those of the clean twin: push the marked model.")
    if key is None:
        if digest != record.marked_sha256:
            raise PushRefusedError("the weights differ from those that the record names: pass key= to read the mark.")
        if others:
            raise PushRefusedError(
                f"the record says nothing of the denoiser in '{others[0].path.name}': pass key= to read it too."
            )
        return
    _check_mark(denoiser, key, record, "")
    if digest != record.marked_sha256:
        warnings.warn(
            "the mark verifies, but the weights are not value for value those that the record names (other dtype, or "
            "trained further): whoever compares hashes will find them different.",
            stacklevel=3,
        )
    for other in others:
        del denoiser  # one at a time in memory
        denoiser = load_denoiser(other, dtype=torch.float32)
        _check_variants(folder, other.path, denoiser)
        _check_mark(denoiser, key, record, f" in '{other.path.name}'")


def _check_mark(denoiser: nn.Module, key: WatermarkKey, record: WatermarkRecord, where: str) -> None:
    report = verify(denoiser, key, record=record)
    if not report.verified:
        found = report.reason if report.log10_p is None else f"log10 p = {report.log10_p:.1f}"
        raise PushRefusedError(
            f"the mark does not verify with this key{where} ({report.verdict}, {found}): embed it first."
        )


def _check_commitment(folder: Path, record: WatermarkRecord) -> None:
    """Refuse a record of scheme aiao-2 beside a document that is not its commitment; the record itself was checked as it was loaded."""
    path = folder / FOLDER / COMMITMENT
    if record.scheme != BOUND_SCHEME:
        if path.exists():
            raise PushRefusedError(
                f"'{FOLDER}/{COMMITMENT}' lies beside a record that no commitment covers: remove it."
            )
        return
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != record.commitment:
        raise PushRefusedError(f"'{FOLDER}/{COMMITMENT}' is not the record's commitment: save the record anew.")


def _load_clean_twin(source: Any, token: str | bool | None) -> nn.Module:
    """The clean twin in float32, like the upload: values are compared, not storage."""
    return denoiser_of(source) or load_denoiser(local_path(source, token=token), dtype=torch.float32)


def _check_other_files(folder: Path, parts: Collection[Path]) -> None:
    """Refuse weights beside the denoisers' own: a forgotten checkpoint of the clean twin undoes the mark.

    Args:
        parts: the denoisers' folders, which `_check_variants` looks into.
    """
    for path in list_files(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in _UNCHECKED:
            raise PushRefusedError(f"'{name}' cannot be looked at safely: remove it, publish safetensors only.")
        if path.suffix.lower() != ".safetensors":
            if _holds_weights(path):
                raise PushRefusedError(f"'{name}' holds weights or an archive under another name: remove it.")
            continue
        if path.parent in parts:
            continue
        tensors = read_header(path).tensors
        kind, _ = kind_of_keys(tensors, {key: info.shape for key, info in tensors.items()})
        if kind in ("denoiser", "single_file") or any(key.startswith(EMA_PREFIX) for key in tensors):
            raise PushRefusedError(f"'{name}' holds a second denoiser, perhaps the clean twin: remove it.")


def _check_variants(folder: Path, part: Path, denoiser: nn.Module) -> None:
    """Refuse a variant of other weights in a denoiser's folder, as of the clean twin."""
    state = denoiser.state_dict()
    for path in list_files(part):
        if path.parent != part or path.suffix.lower() != ".safetensors":
            continue
        for tensor_name, tensor in load_tensors(path).items():
            # bfloat16 keeps 8 bits, float16 ends at 6e-8: a half-precision variant of the same weights passes.
            mine = state.get(tensor_name)
            if mine is None or mine.shape != tensor.shape or not _equal_but_for_rounding(mine, tensor):
                raise PushRefusedError(
                    f"'{path.relative_to(folder).as_posix()}' holds other weights than the denoiser that was checked "
                    f"({tensor_name}): remove it."
                )


def _holds_weights(path: Path) -> bool:
    """By its first bytes: safetensors, a pickle, GGUF, or an archive that may hold any of them, whatever the name says."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    safetensors = start[8:] == b"{" and length < path.stat().st_size
    return safetensors or start.startswith((*PICKLE_STARTS, *_CONTAINERS))


def _equal_but_for_rounding(mine: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(other.float(), mine.float(), rtol=2**-8, atol=1e-7)


# Sending ------------------------------------------------------------------------------------------------------------


def _publish(
    folder: Path,
    repo: str,
    fields: CardFields,
    private: bool | None,
    create_pr: bool,
    revision: str | None,
    message: str | None,
    token: str | bool | None,
) -> CommitInfo:
    """One commit on top of the head that was read, so that no README edited meanwhile is overwritten."""
    api = HfApi(token=token)
    try:
        repo = str(api.create_repo(repo, private=private, exist_ok=True).repo_id)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, exist_ok=True)
        info = api.model_info(repo, revision=revision)
        if private and not info.private:
            raise PushRefusedError(f"'{repo}' exists and is public: make it private in its settings first.")
        sent = _collect_files(folder, repo, fields, read_remote_readme(api, repo, str(info.sha)))
        made = api.create_commit(
            repo,
            [CommitOperationAdd(name, content) for name, content in sent.items()],
            commit_message=message or "Publish marked model",
            revision=revision,
            create_pr=create_pr,
            parent_commit=info.sha,
        )
        # A .gitignore in the repository makes the Hub drop files without a word.
        missing = sorted(sent.keys() - set(api.list_repo_files(repo, revision=made.pr_revision or made.oid)))
    except AIAOError:
        raise
    except (*HTTP_ERRORS, RuntimeError, ValueError) as error:
        raise explain_error(error, repo) from error
    if missing:
        raise HubError(f"'{repo}' left out {', '.join(missing[:3])}: correct its .gitignore and push again.")
    return made


def _collect_files(folder: Path, repo: str, fields: CardFields, remote: str | None) -> dict[str, Any]:
    """Path in the repository to a file or bytes."""
    files = {path.relative_to(folder).as_posix(): path for path in list_files(folder)}
    sent: dict[str, Any] = {
        name: files[name] for name in filter_repo_objects(files, ignore_patterns=DEFAULT_IGNORE_PATTERNS)
    }
    digest = hashlib.sha256((folder / FOLDER / DOCUMENT).read_bytes()).hexdigest()
    index = folder / INDEX
    pipeline = (
        read_json(index).get("_class_name") if index.is_file() else None
    )  # which `check_weights` knows as one of diffusers
    card = marked_model(WatermarkRecord.load(folder), digest, repo, fields, pipeline)
    local = _decode_utf8((folder / README).read_bytes()) if (folder / README).is_file() else None
    text = card.joined(remote or "" if local is None else local)
    if local is not None and remote is not None and not is_untouched(remote):
        lost = set(own_text(remote).split("\n")) - set(text.split("\n"))
        if lost:
            raise CardError(
                f"README.md of '{repo}' was written on the Hub and '{folder}' holds another: copy that text into the "
                "folder's README.md, or remove the folder's to keep the Hub's."
            )
    sent[README] = text.encode()
    results = eval_results_yaml(fields.results)
    if results:
        sent[RESULTS] = results.encode()
    return sent


def read_remote_readme(api: HfApi, repo: str, sha: str) -> str | None:
    found = api.get_paths_info(repo, [README], revision=sha)
    if not found:
        return None
    if getattr(found[0], "size", 0) > MAX_README_BYTES:
        raise CardError(f"README.md of '{repo}' has more than {MAX_README_BYTES} bytes: shorten it.")
    return _decode_utf8(Path(api.hf_hub_download(repo, README, revision=sha)).read_bytes())


def _decode_utf8(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise CardError(f"README.md is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8.") from error


def explain_error(error: Exception, repo: str) -> AIAOError:
    """The client's error as ours, with what to do."""
    response = getattr(error, "response", None)
    if isinstance(error, ValueError) and "metadata in README" in str(error):
        return CardError(f"the Hub refuses README.md of '{repo}': {error}")
    advice = _ADVICE.get(getattr(response, "status_code", 0), _RERUN)
    if getattr(response, "status_code", 0) == 429:
        advice = f"the Hub asks to wait {response.headers.get('Retry-After', 'a few')} s, then {_RERUN}"  # type: ignore[union-attr]
    reason = " ".join(re.sub(r"\(Request ID: [^)]*\)", "", str(error)).split())[:300]
    return HubError(f"push to '{repo}' failed ({type(error).__name__}: {reason}): {advice}.")
