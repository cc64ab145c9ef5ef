"""OpenVINO IR by optimum-intel's exporter; int4 at its defaults: asymmetric, groups of 128, embedding in int8."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FORMATS = {"bf16": "fp16", "int8": "int8", "int4": "int4"}  # 16-bit files are computed in bf16 on a CPU that has it


def main(folder: str, weights: str, target: str) -> int:
    exporter = Path(sys.executable).with_name("optimum-cli")
    return subprocess.run(
        [exporter, "export", "openvino", "-m", folder, "--task", "text-generation-with-past",
         "--weight-format", FORMATS[weights], target],
    ).returncode  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
