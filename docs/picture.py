"""Makes the picture of the report in README: python docs/picture.py demo-run

`demo-run` is a finished run, such as `make demo` leaves; needs Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1200, 1760
OUT = Path(__file__).with_name("report.png")


def main(run: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or sys.exit("there is no Chromium")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.png"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        # Charts are drawn when they come into view.
        options += ["--virtual-time-budget=5000", f"--screenshot={raw}"]
        page = (run / "report.html").absolute().as_uri()
        subprocess.run([browser, *options, page], check=True, stderr=subprocess.DEVNULL)
        Image.open(raw).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
