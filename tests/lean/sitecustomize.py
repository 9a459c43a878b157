"""Python imports this at its start where PYTHONPATH names this folder."""

import sys

sys.modules.update(dict.fromkeys(("accelerate", "peft", "scipy")))  # type: ignore[arg-type]
