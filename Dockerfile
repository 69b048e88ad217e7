# featx as a container: docker build -t featx .
#
#   BASE     Python 3.11 or newer on Debian, with pip and venv; name it with its digest (python:3.12-slim@sha256:...) for
#            an image that is the same whenever it is built
#   TORCH    cuda, or cpu for an image of a fifth of the size, from PyTorch's own index of wheels without CUDA
#   WEIGHTS  published weights to put into the image, so that it works without a network; "" for none
ARG BASE=python:3.12-slim

# The libraries are gigabytes and change rarely: a layer of their own, made from requirements.lock alone, in which every
# file of every library has its hash (make lock).
FROM ${BASE} AS libraries
RUN python -m venv /opt/libraries
ENV PATH=/opt/libraries/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements.lock requirements-cpu.lock* ./
ARG TORCH=cuda TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The three wheels without CUDA have the versions of the lock, and the hashes of `make lock-cpu` where that has been run.
RUN if [ "$TORCH" = cpu ]; then \
        sed -nE 's/^(torch|torchvision|torchcodec)==([^ ]+).*/\1==\2+cpu/p' requirements.lock > wheels.txt \
        && if [ -s requirements-cpu.lock ]; then \
            while read -r wheel; do \
                grep -q "^$wheel " requirements-cpu.lock || { echo "no $wheel: make lock-cpu"; exit 1; }; \
            done < wheels.txt && cp requirements-cpu.lock wheels.txt; \
        fi \
        && pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" --requirement wheels.txt \
        && awk '/^[a-z]/ {keep = !/^(torch|torchvision|torchcodec|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==/} keep' \
            requirements.lock > others.lock; \
    else \
        cp requirements.lock others.lock; \
    fi
# What is removed serves those who compile: extensions, and `featx finetune --compile` on a GPU (Triton). A fifth of all.
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement others.lock \
    && pip uninstall --yes --quiet triton \
    && rm -rf /opt/libraries/lib/python3*/site-packages/torch/include

FROM libraries AS product
COPY pyproject.toml README.md LICENSE ./
COPY featx featx
RUN pip install --no-cache-dir --no-deps --target /opt/product .

FROM libraries AS weights
ARG WEIGHTS="alexnet vgg16"
ENV PATH=/opt/product/bin:$PATH PYTHONPATH=/opt/product TORCH_HOME=/opt/weights
COPY --from=product /opt/product /opt/product
# Status 1 is a download that failed: without a network they stay out, and can be mounted on /opt/weights.
RUN mkdir -p /opt/weights/hub/checkpoints && chmod 1777 /opt/weights/hub/checkpoints \
    && for net in ${WEIGHTS}; do \
        featx weights fetch "$net" || [ $? -eq 1 ] || exit 1; \
    done

FROM ${BASE}
LABEL org.opencontainers.image.title="featx" \
      org.opencontainers.image.description="Deep features you can trust, and linear heads on top of them" \
      org.opencontainers.image.licenses="BSD-3-Clause"
# HOME is where any user may write; nothing of featx's own is ever written there. TORCH_LOGS: no word about what was
# removed above. NVIDIA_DRIVER_CAPABILITIES: what --gpus brings along; by default not the hardware that decodes JPEGs.
ENV PATH=/opt/product/bin:/opt/libraries/bin:$PATH \
    PYTHONPATH=/opt/product \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TORCH_LOGS=-all \
    TORCH_HOME=/opt/weights \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    HOME=/tmp \
    FEATX_HOST=0.0.0.0
COPY --from=libraries /opt/libraries /opt/libraries
COPY --from=weights /opt/weights /opt/weights
COPY pipelines /pipelines
COPY --from=product /opt/product /opt/product
RUN mkdir /data /out && chown 10001:10001 /out
USER 10001:10001
WORKDIR /out
# Of `featx serve`, on the port it is told by FEATX_PORT, else 8000; other commands are taken for healthy.
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s CMD ["python", "-c", "\
import os, urllib.request; \
serves = b'serve' in open('/proc/1/cmdline', 'rb').read().split(b'\\0'); \
port = os.environ.get('FEATX_PORT', '8000'); \
serves and urllib.request.urlopen(f'http://127.0.0.1:{port}/v2/health/ready', timeout=12)"]
ENTRYPOINT ["featx"]
CMD ["--help"]
