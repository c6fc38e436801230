from __future__ import annotations

import pytest
from dicom_encoding import Encoded, encode


@pytest.fixture(scope="session")
def encoded() -> Encoded:
    return encode()
