"""Punica's Fig. 11 (MLSys 2024) in small: throughput of a queue by who asks for which adapter."""

from experiments.lora.adapter_mixes import run as run
