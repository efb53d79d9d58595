"""What scripts share: how many clean rows a defender holds by default, and where a run keeps its steps."""
import pytest

from conftest import fails
from minibd.job.run import NEW_LOG, start
from minibd.job.task import clean_amount, validated
from minibd.cli import AllClean, Attack, Clean, Task


@pytest.mark.parametrize("clean, data, n, amount", [
    (None, "", 6920, 0.2), (None, "", 10_000, 0.2), (None, "", 10_001, 2000), (None, "", 12_000, 2000),
    (0.2, "", 12_000, 0.2), (64.0, "", 12_000, 64.0),
])
def test_clean_rows_by_default_are_a_fifth_and_at_most_two_thousand(clean, data, n, amount):
    assert clean_amount(Task(ckpt="m", data=data), Clean(clean=clean), n) == amount


def test_all_rows_of_a_single_file_are_clean(tmp_path, folder):
    assert clean_amount(Task(ckpt="m", data=str(folder / "train.tsv")), Clean(), 50_000) == 1.0
    assert clean_amount(Task(ckpt="m", data=str(folder)), Clean(), 100) == 0.2


@pytest.mark.parametrize("method", [Clean, AllClean])
def test_the_dev_rows_that_a_defender_chooses_by(tiny_file, folder, tmp_path, method):
    def splits(**clean):
        return start(
            "m", Task(ckpt=str(tiny_file), data=str(folder), out=str(tmp_path / "out"), device="cpu"), method(**clean),
            Attack(),
        ).splits

    everyone = splits()
    few = splits(dev=4)
    assert len(few.dev) == 4 and {x.id for x in few.dev} < {x.id for x in everyone.dev}
    assert few.train == everyone.train and few.test == everyone.test
    assert validated(few, few.train, 0) == (few.train, few.dev)
    fails(lambda: splits(dev=10_000), "10000", str(len(everyone.dev)))


def test_a_jobs_log_is_its_own_list_unless_another_is_supplied(tiny_file, folder, tmp_path):
    def log():
        return start(
            "m", Task(ckpt=str(tiny_file), data=str(folder), out=str(tmp_path / "out"), device="cpu"), Clean(),
            Attack()
        ).log

    given = []
    set_ = NEW_LOG.set(lambda: given)
    try:
        assert log() is given
    finally:
        NEW_LOG.reset(set_)
    assert log() is not given and log() == [] and log() is not log()
