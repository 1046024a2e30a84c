"""Fits and generates every case as one of several processes: `torchrun ... ranks_driver.py DATA FOLDER CASE ...`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from lifecycle import fit_case, generate_case


def main(data: Path, folder: Path, cases: list[str]) -> None:
    """Fit and generate, in one process group: starting `torchrun` takes longer than the rest."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for case in cases:
        fit_case(case, data, folder / case / "run")
        generate_case(folder / case / "run", folder / case / "out")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
