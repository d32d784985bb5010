"""Every config comes to what it came to: a default that changes shows in the golden file of each config it reaches."""

import json
import runpy

import pytest

from paths import ROOT

GOLDEN = ROOT / "tests" / "training" / "golden"
TEXTS = runpy.run_path(str(ROOT / "tools" / "golden_configs.py"))["texts"]()
WAY_OUT = "if it is meant, `python tools/golden_configs.py` writes the golden files anew: look at the difference"


def test_there_is_a_golden_file_for_each_config():
    assert {path.stem for path in GOLDEN.glob("*.json")} == TEXTS.keys(), WAY_OUT


@pytest.mark.parametrize("name", TEXTS)
def test_a_config_comes_to_what_it_came_to(name):
    now, then = json.loads(TEXTS[name]), json.loads((GOLDEN / f"{name}.json").read_text())
    none = "no such key"
    pairs = {key: (then.get(key, none), now.get(key, none)) for key in now.keys() | then.keys()}
    assert {key: pair for key, pair in pairs.items() if pair[0] != pair[1]} == {}, f"then and now; {WAY_OUT}"
