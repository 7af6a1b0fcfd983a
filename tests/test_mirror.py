"""The tests' tree is that of framework/, and tests/experiments that of experiments/.

Every module with functions or classes has a test file of its own name.
"""

import ast
from pathlib import Path

from framework.paths import ROOT

TESTS = ROOT / "tests"
TESTED_ELSEWHERE = {  # module → why it has no test file of its own name
    "contracts.py": "on every implementation: tests/contracts",
    "kernels/byte_linear.py": "for either kind of byte: test_int8.py and test_fp8.py",
    "kernels/linear_triton.py": "beside its plain reference: test_linear.py and test_int8.py",
    "kernels/old_tokens_triton.py": "in the kernels that call it: test_paged_decode.py and test_paged_prefill.py",
    "kernels/paged_decode_triton.py": "beside its plain reference: test_paged_decode.py",
    "kernels/paged_prefill_triton.py": "beside its plain reference: test_paged_prefill.py",
    "lora/none.py": "gives back the model that it is given",
    "quantization/none.py": "gives back the model that it is given",
}
OF_SEVERAL_MODULES = {  # test file → what it tests
    "cost/test_chain.py": "steps, the model fitted on them, and a replay with it",
    "engine/torch_engine/test_gpu_path.py": "whole replays on the GPU's way, on a CPU",
    "engine/torch_engine/test_replay_tokens.py": "tokens through a whole replay",
    "engine/torch_engine/test_schedules.py": "tokens under every scheduler on a real GPU",
    "lora/test_cuda.py": "adapters on a real GPU",
    "lora/test_gpu_path.py": "adapters on the GPU's way, on a CPU",
    "lora/test_peft.py": "every strategy against PEFT",
    "lora/test_peft_tables.py": "what PEFT has beyond A and B on plain projections",
    "lora/test_shipped.py": "the adapters in models/adapters",
    "models/test_conf.py": "the shapes in conf/model",
    "models/test_malformed.py": "seeded malformed checkpoints and adapters",
    "models/test_tiny.py": "the model in models/tiny",
    "models/test_unusual.py": "checkpoints that users reported",
    "quantization/test_run.py": "quantization= on the command line",
    "quantization/test_schemes.py": "what every scheme promises",
    "quantization/test_tiny_quality.py": "what the schemes cost the model in models/tiny",
    "report/test_browser.py": "pages in Chromium",
    "scheduler/test_conf.py": "the schedulers in conf/scheduler",
    "test_commands.py": "the commands in README and docs",
    "test_docs.py": "README and docs",
    "test_launchers.py": "sweeps on Ray and on Slurm",
    "test_mirror.py": "this file",
    "test_modelled_cases.py": "event logs of random replays",
    "test_run.py": "run.py",
    "trace/test_cases.py": "traces that users reported, on the command line",
    "trace/test_samples.py": "the traces in traces/",
}


def modules() -> dict[str, Path]:
    """All, by the place that their tests have in tests/."""
    roots = {ROOT / "framework": ROOT / "framework", ROOT / "experiments": ROOT}
    return {path.relative_to(root).as_posix(): path for folder, root in roots.items() for path in folder.rglob("*.py")}


def behaves(path: Path) -> bool:
    """Whether it has a function or a class."""
    return any(map(is_behaviour, ast.parse(path.read_text()).body))


def is_behaviour(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef)


def file_of(module: str) -> str:
    path = Path(module)
    return path.with_name(f"test_{path.name}").as_posix()


def test_every_module_has_a_test_file_of_its_name():
    behaving = [module for module, path in modules().items() if behaves(path)]
    lacking = [module for module in behaving if not (TESTS / file_of(module)).exists()]
    assert sorted(lacking) == sorted(TESTED_ELSEWHERE)


def test_every_test_file_has_a_module_of_its_name_or_says_what_it_tests():
    apart = {"bench", "contracts", "robustness"}
    files = [path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")]
    files = [path.as_posix() for path in files if path.parts[0] not in apart]
    known = set(map(file_of, modules()))
    assert sorted(set(files) - known) == sorted(OF_SEVERAL_MODULES)
