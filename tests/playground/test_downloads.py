from __future__ import annotations

import gc
import os
import shutil
import time
from pathlib import Path

from nodule_plugin.playground.components import Downloads


def zipped(folder: Path) -> Path:
    (folder / "image.png").write_bytes(b"pixels")
    return Path(shutil.make_archive(str(folder), "zip", folder))


def test_the_oldest_downloads_go_first_and_all_go_with_the_program() -> None:
    downloads = Downloads(2)
    files = []
    for age in (300, 200, 100):
        files.append(Path(downloads.pack("set-", zipped)))
        os.utime(files[-1], (time.time() - age,) * 2)
    assert [file.is_file() for file in files] == [False, True, True]
    folder = files[0].parent
    assert sorted(folder.iterdir()) == sorted(files[1:])
    del downloads
    gc.collect()
    assert not folder.exists()
