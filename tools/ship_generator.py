"""Make the generator that ships with the package again: `python tools/ship_generator.py [folder]`.

About 25 minutes on two CPU cores; stopped and run again, it goes on. The result is pathloop/generators/smear-32 (or
another folder, to compare): the same weights up to the last digits on another processor, or another number of threads.
"""

import sys
from pathlib import Path

from pathloop.diffusion import TrainConfig, pretrain
from pathloop.smear import make_smear

PLACE = Path(__file__).resolve().parent.parent / "pathloop" / "generators" / "smear-32"


def main() -> None:
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else PLACE
    if place.exists():
        sys.exit(f"{place} exists: remove it to make it again, or name another folder")
    checkpoint = Path("smear-32.checkpoint.safetensors")
    generator = pretrain(make_smear(n_per_class=128, size=32, seed=0), settings=TrainConfig(), checkpoint=checkpoint)
    generator.save_pretrained(place, half=True)
    checkpoint.unlink(missing_ok=True)
    print(f"generator {generator.id} in {place}")


if __name__ == "__main__":
    main()
