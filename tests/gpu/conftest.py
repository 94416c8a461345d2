"""What needs a CUDA device. Run it with `make test-gpu`.

Where pytest's plugins are missing: `python -m pytest -c /dev/null --rootdir . tests/gpu`. Nothing
here imports Ray, and all tests are synchronous. FLUX_SERVE_GPU_TRUE_SIZE=1 adds FLUX.1 at its true
size (about 70 GiB of GPU memory, minutes).
"""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings("default"))  # compilers warn a lot
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
