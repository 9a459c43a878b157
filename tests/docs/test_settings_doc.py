"""docs/settings.md is what the code says."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_document_is_current():
    script = load_script("write_settings_doc")
    current = script.TARGET.read_text(encoding="utf-8")
    assert current == script.settings_doc(), "run: python scripts/write_settings_doc.py"


def test_every_setting_has_a_meaning():
    script = load_script("write_settings_doc")
    assert "None |" not in script.settings_doc()
