"""How fast, hot and throttled a GPU was while something ran on it; the only importer of pynvml (package nvidia-ml-py).

A thread asks four times a second. It waits in the driver without Python's lock, so a step loses some microseconds at
most.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

import torch
from typing_extensions import TypedDict

INTERVAL = 0.25  # seconds
REASONS = {  # bits of NVML's reasons for a clock below what it could be, those that take speed away
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown, by software",
    0x40: "thermal slowdown, by hardware",
    0x80: "power brake",
}


class Spread(TypedDict):
    min: float
    median: float
    max: float


class GpuRecord(TypedDict):
    """Over a replay: the multiprocessors' clock (MHz), power (W), temperature (°C), and why it was throttled, if so."""

    num_samples: int
    sm_clock: Spread
    power: Spread
    temperature: Spread
    throttle_reasons: list[str]


@dataclass(frozen=True, slots=True)
class Sample:
    sm_clock: float
    power: float
    temperature: float
    reasons: int  # bits


@dataclass
class GpuWatch:
    """`sample` asks the GPU; `record` is what came of the last `watching`."""

    sample: Callable[[], Sample | None]
    samples: list[Sample] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample in the background while the body runs, and once at its end, before the GPU is idle."""
        self.samples = []
        is_over = Event()
        thread = Thread(target=self._sample_until, args=(is_over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _sample_until(self, is_over: Event) -> None:
        while not is_over.wait(INTERVAL):
            self._take()
        self._take()

    def _take(self) -> None:
        sample = self.sample()
        if sample is not None:
            self.samples.append(sample)

    def record(self) -> GpuRecord | None:
        """None if the GPU gave no answer."""
        if not self.samples:
            return None
        reasons = [name for bit, name in REASONS.items() if any(sample.reasons & bit for sample in self.samples)]
        return {
            "num_samples": len(self.samples),
            "sm_clock": spread([sample.sm_clock for sample in self.samples]),
            "power": spread([sample.power for sample in self.samples]),
            "temperature": spread([sample.temperature for sample in self.samples]),
            "throttle_reasons": reasons,
        }


def spread(values: list[float]) -> Spread:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def open_gpu(device: torch.device, say: Callable[[str], None]) -> GpuWatch | None:
    """None on a CPU, and, as a line then says, where the GPU's state cannot be read."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        say("the GPU's clocks and temperature are not recorded: pip install nvidia-ml-py")
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        take_sample(pynvml, handle)
    except pynvml.NVMLError as error:
        say(f"the GPU's clocks and temperature are not recorded: {error}")
        return None

    def sample() -> Sample | None:
        try:
            return take_sample(pynvml, handle)
        except pynvml.NVMLError:  # busy for once
            return None

    return GpuWatch(sample)


def take_sample(nvml: Any, handle: Any) -> Sample:
    return Sample(
        sm_clock=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        power=nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        temperature=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        reasons=nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    )
