"""What scripts share: how many clean rows a defender holds by default."""
import pytest

from minibd import job
from minibd.cli import Clean, Task


@pytest.mark.parametrize("clean, data, n, amount", [
    (None, "", 6920, 0.2), (None, "", 10_000, 0.2), (None, "", 10_001, 2000), (None, "", 12_000, 2000),
    (0.2, "", 12_000, 0.2), (64.0, "", 12_000, 64.0),
])
def test_clean_rows_by_default_are_a_fifth_and_at_most_two_thousand(clean, data, n, amount):
    assert job.clean_amount(Task(ckpt="m", data=data), Clean(clean=clean), n) == amount


def test_all_rows_of_a_single_file_are_clean(tmp_path, folder):
    assert job.clean_amount(Task(ckpt="m", data=str(folder / "train.tsv")), Clean(), 50_000) == 1.0
    assert job.clean_amount(Task(ckpt="m", data=str(folder)), Clean(), 100) == 0.2
