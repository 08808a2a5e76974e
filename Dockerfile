# hadolint global ignore=DL3008
# DL3008 (pin apt versions): Debian removes old ones, a pinned build would soon fail; libgomp's interface is stable.

FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements.lock ./
# Locked versions by hash, wheels only: nothing is compiled.
RUN python -m venv /opt/headrace \
 && /opt/headrace/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY features ./features
COPY models ./models
COPY monitoring ./monitoring
COPY streams ./streams
RUN /opt/headrace/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim
# LightGBM's wheel needs the system's OpenMP.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --create-home headrace \
 && install --directory --owner headrace --group headrace /data
COPY --from=build /opt/headrace /opt/headrace
# Compiled kernels are kept where this user may write.
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/home/headrace/.cache/numba
USER 10001
WORKDIR /data
# Kafka ($HEADRACE_BOOTSTRAP) answers: without it no command in here can work.
HEALTHCHECK --interval=30s --timeout=20s --start-period=30s CMD ["headrace", "topics", "list"]
ENTRYPOINT ["headrace"]
CMD ["run", "--pipeline", "fraud"]
