"""The log of a scan: a row a suspect, appended as it is decided, so that a killed scan goes on."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, OutputExistsError
from ..files.jsonl import append_line, cut_torn_line
from ..files.text import short


@dataclass(frozen=True)
class ScanRow:
    """One suspect: a file or folder of a repository at a commit.

    Args:
        verdict (`str`): of this suspect alone; `ScanReport.verdict_of` corrects it for the whole scan. reason: why it is
            `not_testable`. log10_p, bit_accuracy: as in `VerificationReport`.
        distance (`float`, *optional*): norm of its weight change over the norm of the base's weights; 0 is a copy.
        copy_of (`str`, *optional*): the suspect, or the base, with identical tensors; its reading holds for this one too.
        lineage_reading (`dict`, *optional*): where the mark has a lineage carrier, what an adapter's file alone says of the model that
            it was trained on, or a whole model's weights of their descent (`kind`): `verdict` and `log10_p` of this suspect alone,
            `reason`, `sites` (how many were read), `share` of the architecture's. None: not asked.
        lineage: declared ancestors from the scanned base down. declared_base, declared_by: what the suspect itself names.
        settled (`bool`): False where a later run should ask again (the Hub was away, a budget was spent, no access).
    """

    repo: str
    commit: str | None
    file: str
    relation: str | None
    lineage: tuple[str, ...]
    found_by: str
    verdict: str
    reason: str | None = None
    log10_p: float | None = None
    bit_accuracy: float | None = None
    distance: float | None = None
    copy_of: str | None = None
    kind: str | None = None
    declared_base: str | None = None
    declared_by: str | None = None
    digest: str | None = None
    file_key: tuple[str, ...] = ()
    bytes: int = 0
    denoiser_evals: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    settled: bool = True
    lineage_reading: dict[str, Any] | None = None

    @property
    def label(self) -> str:
        """Repository and file."""
        return f"{self.repo}/{self.file}" if self.file else self.repo

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "ScanRow":
        """A row from its JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)


class ScanLog:
    """`scan.jsonl`: a first line that says which scan it is, then one line a repository (see `files.jsonl`).

    A process killed while it writes leaves a torn last line, which is cut off; that repository is asked again. Whoever
    opens a log holds the lock of its folder.

    Args:
        path: of the file. header: which scan this is.
        asks_lineage (`bool`, defaults to False): adapters are read for their lineage. Rows of a version that did not are asked again.
    Raises:
        OutputExistsError: the file is of another scan. ConfigError: it is no scan log.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, asks_lineage: bool = False) -> None:
        self.repos: dict[str, tuple[str | None, tuple[ScanRow, ...]]] = {}
        self.path, self.asks_lineage = path, asks_lineage
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        # Older logs may hold a torn line within.
        known = [value for line in lines if (value := _json(line)) is not None]
        if known and known[0].get("scan") != header:
            raise OutputExistsError(
                f"'{path}' is the log of another scan ({short(known[0].get('scan'))}): choose another output folder."
            )
        if any(lines) and not known:
            raise ConfigError(f"'{path}' is no scan log: choose another output folder.")
        for entry in known[1:]:
            if isinstance(entry.get("rows"), list):
                self._keep(entry["repo"], entry["commit"], tuple(ScanRow.of(row) for row in entry["rows"]))
        if lines:
            cut_torn_line(path)
        if not known:
            path.parent.mkdir(parents=True, exist_ok=True)
            append_line(path, {"scan": header})

    def settled(self, repo: str, commit: str | None) -> bool:
        """Whether this repository at this commit needs no further look."""
        known, rows = self.repos.get(repo, (None, ()))
        return commit is not None and known == commit and all(map(self._is_settled, rows))

    def _is_settled(self, row: ScanRow) -> bool:
        unasked = self.asks_lineage and row.kind == "lora" and row.lineage_reading is None
        return row.settled and not unasked

    def write(self, repo: str, commit: str | None, rows: tuple[ScanRow, ...]) -> None:
        """One repository's rows, all or none; the latest line of a repository counts. Raises as `files.jsonl.append_line`."""
        append_line(self.path, {"repo": repo, "commit": commit, "rows": [asdict(row) for row in rows]})
        self._keep(repo, commit, rows)

    def rows(self) -> tuple[ScanRow, ...]:
        """Of every repository the latest."""
        return tuple(row for _, rows in self.repos.values() for row in rows)

    def _keep(self, repo: str, commit: str | None, rows: tuple[ScanRow, ...]) -> None:
        self.repos[repo] = (commit, rows)


def _json(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
