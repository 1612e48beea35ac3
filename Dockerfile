# The page and the interface in a container: torch for CPUs, the default weights inside, not root.
# docs/serve.md says how it is built and run.
FROM python:3.12-slim AS build
# Wheels of torch without CUDA stand on a page of torch's own; they count as newer than the others.
ARG TORCH_WHEELS="https://download.pytorch.org/whl/cpu/torch/ https://download.pytorch.org/whl/cpu/torchvision/"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY deep_image_compositing deep_image_compositing
RUN python -m venv /opt/compositing && PIP_FIND_LINKS="$TORCH_WHEELS" \
    /opt/compositing/bin/pip install ".[serve,matting,opencv]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 compositing
COPY --from=build /opt/compositing /opt/compositing
USER compositing
ENV PATH=/opt/compositing/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/tmp
EXPOSE 8000
HEALTHCHECK --interval=30s --start-period=60s --timeout=5s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["deep-image-compositing", "serve", "--host", "0.0.0.0"]
