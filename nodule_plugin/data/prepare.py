"""From a dataset to its data list in one call, for configurations that must not depend on an earlier command."""

from __future__ import annotations

import logging
from pathlib import Path

from nodule_plugin.data.datalist import build_datalist, summarise, write_datalist
from nodule_plugin.data.sources import load_nodules

_logger = logging.getLogger(__name__)


def ensure_datalist(path: str | Path, dataset_dir: str | Path) -> Path:
    """Write the data list of ``dataset_dir`` with the settings of prepare.json, unless the file is there already.

    Args:
        path: of the data list; phantoms and the index of DICOM headers are put beside it.
        dataset_dir: see :func:`nodule_plugin.data.sources.load_nodules`.

    Raises:
        InputError: as :func:`load_nodules` and :func:`write_datalist` do.
    """
    file = Path(path)
    if not file.is_file():
        _logger.info("There is no data list %s: preparing one from %s.", file, dataset_dir)
        index = file.with_name(file.name + ".headers.json")
        nodules = load_nodules(dataset_dir, index_file=index, phantom_dir=file.with_name("phantom"))
        content = build_datalist(nodules)
        write_datalist(content, file)
        _logger.info(summarise(content))
    return file
