"""Namespaces of a server: what they cannot keep apart, and what goes on to reach them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ragllava.local.secluded import why_not_secluded
from tests.support.strangers import needs_namespaces

# Prints how each mount of the process takes part in those of others.
MOUNTS = """
import os
from pathlib import Path
from ragllava.local.secluded import seclude
def shared():
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {fields[4]: " ".join(fields[6 : fields.index("-")]) for fields in lines}
before = shared()
if os.fork():  # the mounts outside, which go when nobody uses them
    os.wait()
    os._exit(0)
seclude([])
after = shared()
print(any("shared:" in text for text in before.values()))
print(all("shared:" not in text for text in after.values()))
print(all("master:" in after.get(place, "master:") for place, text in before.items() if "shared:" in text), flush=True)
"""


def test_a_home_that_is_the_shared_folder_cannot_be_secluded() -> None:
    assert "RAGLLAVA_HOME" in str(why_not_secluded([Path("/tmp")]))
    assert "RAGLLAVA_HOME" in str(why_not_secluded([Path("/tmp/../tmp")]))


@needs_namespaces
def test_what_is_unmounted_outside_goes_inside_too() -> None:
    unshare = ["unshare", "--map-root-user", "--mount", "--propagation", "shared"]  # as most machines are
    run = subprocess.run([*unshare, sys.executable, "-c", MOUNTS], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "True", "True"]
