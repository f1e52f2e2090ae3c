"""Memory is measured in processes of their own."""

import pytest

from aiao_diffusers.bench.audits import memory
from aiao_diffusers.errors import DataError


@pytest.mark.slow
def test_memory_of_a_process_of_its_own(tmp_path):
    with pytest.raises(DataError, match="absent"):  # the child's own error reaches this process
        memory.measure_apart("absent", str(tmp_path / "absent.safetensors"), "lora", 1, True)
