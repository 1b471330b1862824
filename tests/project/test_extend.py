"""What docs/extend.md says of extending is true: each of its files adds a method from outside the package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extend.md"
FUSION = """
import torch
from depfuse import Recipe, fuse
from depfuse.data import calibration_loader, load_data
from depfuse.models import build_network
import angles, greedy, halved

torch.manual_seed(0)
parents = [build_network("digits_resnet(width=0.25)").eval() for _ in range(2)]
images = calibration_loader(load_data("digits"), 40)
criterion = {"name": "activations", "distance": "pearson"}
align = {"criterion": criterion, "solver": {"name": "greedy", "jitter": 1e-9}}

def child(renorm):
    return fuse(parents, Recipe(align=align, refit="none", renorm=renorm), images)

plain, halved_child = child("none"), child("halved")
assert plain.recipe.align.solver.name == "greedy", plain.recipe
assert any((found.permutation != torch.arange(len(found.permutation))).any() for found in plain.couplings[1].values())
variances = [key for key in plain.child.state_dict() if key.endswith("running_var")]
assert variances
for key in variances:
    assert torch.equal(halved_child.child.state_dict()[key], plain.child.state_dict()[key] / 2), key
try:
    Recipe(align={"solver": {"name": "greedy", "jitter": -1.0}})
except Exception as error:
    assert "jitter" in str(error), error
else:
    raise AssertionError("a negative jitter was taken")
result = fuse(parents, Recipe(task="angles", refit="none"), images)
assert result.recipe.task.name == "angles", result.recipe
found, wanted = torch.tensor([[359.0], [10.0]]), torch.tensor([[1.0], [20.0]])
torch.testing.assert_close(result.meaning.task.losses(found, wanted), torch.tensor([2.0, 10.0]).square() / 90**2)
"""


def test_a_solver_a_renorm_and_a_task_are_one_file_each_outside_the_package(tmp_path: Path) -> None:
    files = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["greedy.py", "halved.py", "angles.py"]
    for name, text in files:
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "fusion.py").write_text(FUSION, "utf-8")
    done = subprocess.run([sys.executable, "fusion.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
