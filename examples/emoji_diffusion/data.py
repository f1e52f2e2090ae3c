"""Build the two emoji image folders from their npm packages.

Noto (pre-training): `emoji-datasource-google`, images Apache-2.0. Twemoji (fine-tuning style): `emoji-datasource-twitter`,
images CC-BY-4.0. Each becomes a `datasets` ImageFolder: 64x64 RGB PNGs on white, `metadata.jsonl` with a caption,
and the package's licence text beside them.

    python data.py --out data
"""

import argparse
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import torch
from PIL import Image


VERSION = "16.0.0"
SOURCES = {
    "noto": ("emoji-datasource-google", "google", "Noto Emoji, Apache-2.0, (c) Google"),
    "twemoji": ("emoji-datasource-twitter", "twitter", "Twemoji, CC-BY-4.0, (c) Twitter, Inc. and other contributors"),
}
# Stand-ins for the paper's data sets: subject matter, not difficulty.
CATEGORIES = {
    "animals": {"animal-mammal", "animal-amphibian", "animal-reptile", "animal-marine"},
    "places": {"place-map", "place-geographic", "place-building", "place-religious", "place-other"},
    "birds-bugs": {"animal-bird", "animal-bug"},
}


def caption_of(entry: dict) -> str:
    """Lower-case Unicode name, the only text the model ever sees."""
    return entry["name"].lower().replace("-", " ").strip()


def build(name: str, out: Path) -> Path:
    """Write `out/name`; returns the folder. Does nothing when it is complete already."""
    package, vendor, licence = SOURCES[name]
    folder = out / name
    if (folder / "metadata.jsonl").exists():
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{VERSION}"], cwd=scratch, check=True, stdout=subprocess.DEVNULL
        )
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            wanted = [m for m in archive.getmembers() if f"/img/{vendor}/64/" in m.name or m.name.count("/") == 1]
            archive.extractall(scratch, members=wanted, filter="data")
        package_dir = Path(scratch) / "package"
        partial = out / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        rows = []
        for entry in json.loads((package_dir / "emoji.json").read_text()):
            source = package_dir / "img" / vendor / "64" / entry["image"]
            if not entry[f"has_img_{vendor}"] or not source.exists():
                continue
            picture = Image.open(source).convert("RGBA")
            white = Image.new("RGBA", (64, 64), "white")
            white.alpha_composite(picture.resize((64, 64), Image.Resampling.LANCZOS))
            white.convert("RGB").save(partial / entry["image"])
            rows.append(
                {
                    "file_name": entry["image"],
                    "text": caption_of(entry),
                    "category": entry["category"],
                    "subcategory": entry["subcategory"],
                }
            )
        rows.sort(key=lambda row: row["file_name"])
        (partial / "LICENSE").write_text(f"{licence}\n\n{(package_dir / 'LICENSE').read_text()}")
        (partial / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.rename(folder)
    return folder


def load(folder: str | Path, category: str | None = None) -> tuple[torch.Tensor, list[str]]:
    """Images `(N, 3, 64, 64)` uint8 and their N captions; `category` is a key of `CATEGORIES`."""
    from datasets import load_dataset

    rows = load_dataset("imagefolder", data_dir=str(folder), split="train")
    if category is not None:
        rows = rows.filter(lambda row: row["subcategory"] in CATEGORIES[category])
    images = [torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in rows["image"]]
    return torch.stack(images).view(-1, 64, 64, 3).permute(0, 3, 1, 2).contiguous(), list(rows["text"])


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 pixels to float32 in [-1, 1], the range that the VAE reads and writes."""
    return images.float() / 127.5 - 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    for source in SOURCES:
        built = build(source, arguments.out)
        print(built, sum(1 for _ in open(built / "metadata.jsonl")), "images")
