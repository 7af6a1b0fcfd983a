"""S-LoRA's Fig. 5 and 6 (MLSys 2024) in small: requests served and first tokens over adapters and over the rate."""

from experiments.lora.adapter_mixes import run as run
