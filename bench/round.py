"""How long a round of feedback takes once there is a generator: sampling, 256 verdicts, reward, finetuning. The aim is five minutes on two CPU cores.

    python bench/round.py                          # the default method; nine minutes on two slow cores, with what comes before the round
    python bench/round.py --methods kto curated    # others; what comes before the finetuning is made once

The study is the default one on embedded smears with the shipped generator and a simulated pathologist, who answers at once: people's time comes on top.
Beside the method stands its control, as many steps on real images alone, which a study makes too and which is no part of the round.
"""

import argparse
import json
import platform
import shutil
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from pathloop.loop import Study, StudyConfig, write_config

LIMIT = 300 # Seconds


def seconds(study: Study) -> dict[str, float]:
    "Of each step of the round, from its card."
    folders = {"sample": "pools/round-1", "review": "feedback/round-1", "reward": "rewards/round-1", "finetune": f"generators/{study.config.method}", "control": "generators/real-only"}
    return {step: study.card(folder)["seconds"] for step, folder in folders.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["reward-weighted"], help="as in a study")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "round.json")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        begun = Study.create(Path(folder) / "begun", StudyConfig(generator="smear-32")).run(until="reward")
        for method in given.methods:
            place = shutil.copytree(begun.folder, Path(folder) / method)
            write_config(place / "study.toml", replace(begun.config, method=method))
            steps = seconds(Study(place).run(until="finetune"))
            whole = sum(steps.values()) - steps["control"]
            rows.append({"method": method, "labels": begun.config.labels, **steps, "round": round(whole, 1), "of the aim": round(whole / LIMIT, 2)})
            print(rows[-1], flush=True)
    given.out.write_text(json.dumps({"date": str(date.today()), "device": f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
