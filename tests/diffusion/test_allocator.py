from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from nodule_plugin.diffusion.allocator import keep_freed_memory

PROGRAM = """
import resource, sys, torch
from nodule_plugin.diffusion.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for step in range(20):
    if step == 5:
        start = faults()
    parts = [torch.ones(16, 1024, 1024) for _ in range(2)]
    del parts
print(faults() - start)
"""

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def page_faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@needs_glibc
def test_memory_freed_in_a_step_serves_the_next_one() -> None:
    assert page_faults("keep") < page_faults("default") / 10


def test_a_gpu_is_left_alone() -> None:
    assert not keep_freed_memory("cuda")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory("cpu")
