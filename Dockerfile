# An image with the environment of `make install`, for CPUs or, by a build argument, for GPUs:
#
#   docker build --tag warmup_plugin .
#   docker build --tag warmup_plugin --build-arg VARIANT=cu128 .
#   docker run --rm warmup_plugin
#   docker run --rm --gpus all --volume "$PWD/data:/data" --volume "$PWD/runs:/runs" warmup_plugin \
#       python -m recipes.train /runs/sft --config-file … --config dataset.path=/data
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends libsndfile1 make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /warmup_plugin

COPY . .

# fairseq2 0.8.1 is built for PyTorch 2.9.1, once for each variant of it.
ARG VARIANT=cpu
ARG PIP_EXTRA_INDEX_URL="https://download.pytorch.org/whl/${VARIANT} https://fair.pkg.atmeta.com/fairseq2/whl/pt2.9.1/${VARIANT}"

RUN PIP_NO_CACHE_DIR=1 make install

ENV PATH="/warmup_plugin/.venv/bin:$PATH"

CMD ["make", "demo"]
