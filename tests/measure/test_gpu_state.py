"""What a GPU's state is over a replay, from a fake NVML."""

import sys
import time
from itertools import count
from types import ModuleType, SimpleNamespace

import pytest
import torch

from framework.measure import gpu_state
from framework.measure.gpu_state import open_gpu

CUDA = torch.device("cuda")


class NVMLError(Exception):
    pass


def fake_nvml(clocks=(1980, 1200, 1500), reasons=(0x1, 0x4, 0x40)):
    """A GPU whose clock and reasons change from sample to sample, in turns."""
    module, asked = ModuleType("pynvml"), count()
    module.NVML_CLOCK_SM, module.NVML_TEMPERATURE_GPU, module.NVMLError = "sm", "core", NVMLError
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: {"GPU-1234": "handle"}[uuid]
    module.nvmlDeviceGetClockInfo = lambda handle, kind: clocks[next(asked) % len(clocks)]
    module.nvmlDeviceGetPowerUsage = lambda handle: 700_500
    module.nvmlDeviceGetTemperature = lambda handle, sensor: 63
    last = count()
    module.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: reasons[next(last) % len(reasons)]
    return module


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU of that UUID, watched so often that a short while has many samples."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(gpu_state, "INTERVAL", 0.001)

    def install(module):
        monkeypatch.setitem(sys.modules, "pynvml", module)

    return install


def test_clocks_power_temperature_and_what_throttled_it(gpu):
    gpu(fake_nvml())
    watch = open_gpu(CUDA, pytest.fail)
    with watch.watching():
        time.sleep(0.1)
    record = watch.record()
    assert record["num_samples"] >= 3
    assert (record["sm_clock"]["min"], record["sm_clock"]["max"]) == (1200, 1980)
    assert record["power"] == {"min": 700.5, "median": 700.5, "max": 700.5}
    assert record["temperature"]["median"] == 63
    assert record["throttle_reasons"] == ["power cap", "thermal slowdown, by hardware"]  # being idle is none


def test_the_shortest_replay_has_a_sample_and_each_has_its_own(gpu, monkeypatch):
    gpu(fake_nvml())
    monkeypatch.setattr(gpu_state, "INTERVAL", 60)
    watch = open_gpu(CUDA, pytest.fail)
    for _ in range(2):
        with watch.watching():
            pass
        assert watch.record()["num_samples"] == 1


def test_a_gpu_that_gives_no_answer_has_no_record(gpu):
    nvml = fake_nvml()
    gpu(nvml)
    watch = open_gpu(CUDA, pytest.fail)

    def fail(*_):
        raise NVMLError("busy")

    nvml.nvmlDeviceGetPowerUsage = fail
    with watch.watching():
        pass
    assert watch.record() is None


def test_without_the_package_or_the_driver_one_line_says_so(gpu, monkeypatch):
    said = []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpu(CUDA, said.append) is None
    nvml = fake_nvml()

    def fail():
        raise NVMLError("no driver")

    nvml.nvmlInit = fail
    gpu(nvml)
    assert open_gpu(CUDA, said.append) is None
    assert ["pip install nvidia-ml-py" in line or "no driver" in line for line in said] == [True, True]


def test_a_cpu_is_not_watched():
    assert open_gpu(torch.device("cpu"), pytest.fail) is None
