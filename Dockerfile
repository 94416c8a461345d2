# syntax=docker/dockerfile:1
# flux-serve for machines without a GPU (VARIANT=cpu) and with one (VARIANT=cuda):
#
#   docker build --build-arg VARIANT=cpu --build-arg TORCH_INDEX=... -t flux-serve:0.1.0-cpu .
#   docker build --build-arg VARIANT=cuda -t flux-serve:0.1.0-cuda .
#
# TORCH_INDEX is the index of PyTorch's CPU wheels; without it the CPU image carries CUDA, too.
# Layers go from what changes least to what changes most: torch, dependencies, source.

ARG PYTHON_VERSION=3.11.14
ARG VARIANT=cpu

FROM python:${PYTHON_VERSION}-slim-bookworm AS base
# wget: KubeRay's readiness probe of worker pods calls it (bash is there already).
RUN apt-get update \
    && apt-get install --no-install-recommends --yes wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 flux \
    && useradd --uid 1000 --gid 1000 --create-home flux \
    && install --directory --owner flux --group flux /srv/flux-serve
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0

FROM base AS variant-cpu
ENV FLUX_SERVE_EXTRAS=postgres,otel

FROM base AS variant-cuda
# Compiling (`optimize.compile_transformer`, fp8) builds small C programs at run time.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# The driver and its libraries come from the node; the CUDA libraries are in torch's wheels.
ENV FLUX_SERVE_EXTRAS=postgres,otel,gpu \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM variant-${VARIANT} AS final
ARG TORCH_VERSION=2.13.*
ARG TORCH_INDEX=
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==${TORCH_VERSION}"

WORKDIR /srv/flux-serve
COPY pyproject.toml docker/requirements.py ./
RUN python requirements.py pyproject.toml "$FLUX_SERVE_EXTRAS" > requirements.txt \
    && pip install --requirement requirements.txt \
    && rm requirements.py requirements.txt

COPY README.md LICENSE ./
COPY serve_app serve_app
RUN pip install --no-deps . && rm -rf build serve_app *.egg-info
COPY configs configs
COPY docker/drain-node.sh docker/drain-node.sh

USER 1000:1000
EXPOSE 8000
# For `docker run`; Kubernetes has probes of its own and ignores this.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["wget", "-q", "-T", "4", "-O", "/dev/null", "http://127.0.0.1:8000/health"]
CMD ["flux-serve", "serve", "configs/local.yaml"]
