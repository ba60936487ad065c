# Images with vigc-loop, for CPUs and for GPUs:
#
#   docker build --target cpu -t vigc-loop:cpu .
#   docker build --target gpu -t vigc-loop:gpu .        # with vLLM; the machine needs NVIDIA's driver and container toolkit
#   docker run --rm --shm-size 2g -v "$PWD/runs:/runs" vigc-loop:cpu vigc run loop/recipes/shapes.yaml --resume --run-dir /runs/demo
#
# Packages are those of requirements.lock. They are in the system's Python, as KubeRay starts login shells, which reset PATH.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS base
# wget: for KubeRay's probes. bash, procps: for cluster/launch.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends bash procps wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 vigc
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 RAY_USAGE_STATS_ENABLED=0
WORKDIR /opt/vigc-loop
COPY requirements.lock ./
RUN grep -E '^(setuptools|wheel|uv)==' requirements.lock > tools.txt && pip install -r tools.txt

FROM base AS cpu-packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN grep -E '^torch==' requirements.lock > torch.txt \
 && pip install --index-url "$TORCH_INDEX" -r torch.txt \
 && uv pip install -r requirements.lock

FROM base AS gpu-packages
# triton compiles its launchers at run time.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN uv pip install -r requirements.lock "vllm>=0.32"

FROM cpu-packages AS cpu
COPY . .
RUN pip install --no-deps --no-build-isolation -e . && python -m cluster.launch.install_torchvision
USER 1000

FROM gpu-packages AS gpu
COPY . .
RUN pip install --no-deps --no-build-isolation -e . && python -m cluster.launch.install_torchvision
USER 1000
