"""The folder of a run: which configurations may go on in it."""

import pytest
import yaml

from min_llm.config import UserError
from min_llm.train.run import open_run
from tests.train.runs import configuration


def edited(folder, change):
    path = folder / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    change(saved)
    path.write_text(yaml.safe_dump(saved))


def test_a_run_that_began_before_a_setting_existed_goes_on(tmp_path):
    cfg = configuration(tmp_path)
    with open_run(cfg) as run:
        folder = run.folder
    edited(folder, lambda saved: saved["optim"].pop("beta2"))
    with open_run(cfg):
        assert yaml.safe_load((folder / "config.yaml").read_text())["optim"]["beta2"] == cfg.optim.beta2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda saved: saved["optim"].update(beta2=0.5), "optim.beta2: 0.5 -> 0.95"),
        (lambda saved: saved["optim"].update(gone=1), "optim.gone: 1 -> None"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, change, named):
    cfg = configuration(tmp_path)
    with open_run(cfg) as run:
        folder = run.folder
    edited(folder, change)
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=named), open_run(cfg):
        pass
    assert (folder / "config.yaml").read_bytes() == before
