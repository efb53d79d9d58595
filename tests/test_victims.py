"""What attack.py leaves in a victim's folder is found by all grids alike."""
from minibd.job.victims import is_made, model_in


def test_the_victim_and_its_clean_twin_as_files_and_as_folders(tmp_path):
    for name in ("clean-bert", "clean-clean-bert"):  # a victim that came from a clean twin has its name
        (tmp_path / f"{name}.safetensors").touch()
    assert model_in(tmp_path).name == "clean-bert.safetensors"
    assert model_in(tmp_path, clean=True).name == "clean-clean-bert.safetensors"
    assert not is_made(tmp_path)
    (tmp_path / "attack.json").touch()
    (tmp_path / "config.json").touch()
    assert is_made(tmp_path) and model_in(tmp_path) == tmp_path and model_in(tmp_path, clean=True) == tmp_path / "clean"
