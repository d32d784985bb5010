"""What stands in the documentation."""

import re

from paths import ROOT


def blocks(page, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == language]
