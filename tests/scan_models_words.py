"""The trigger words of the models that the scan is calibrated and reported on, read from scripts/scan_models.py."""
import re

from conftest import ROOT

_SOURCE = (ROOT / "scripts" / "scan_models.py").read_text(encoding="utf-8")
USED = {word for flags in re.findall(r"--(?:triggers|sentence) ('[^']*'|\S+)", _SOURCE)
        for word in re.findall(r"[a-z]+", flags)} - {"the", "it", "to", "before", "i", "my", "was"}
