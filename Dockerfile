# The programs with the demo's weights, for a CPU or for CUDA:
#
#   docker build -t latentsmith .
#   docker build -t latentsmith:cuda --build-arg TORCH=https://download.pytorch.org/whl/cu128 .
#
# Data, runs and pictures lie in the folder that is mounted at /work, and belong to whoever calls:
#
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" latentsmith \
#       sample "red heart" --model /opt/latentsmith/checkpoints/demo
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" --gpus all --shm-size 4g \
#       latentsmith:cuda train-vae --data data/mine --out runs/vae
#
# Without a command it shows the page, at http://localhost:7860 and with a password, which the page
# needs outside of this machine:
#
#   docker run --rm -p 7860:7860 -e LATENTSMITH_PASSWORD=... -v "$PWD:/work" \
#       --user "$(id -u):$(id -g)" latentsmith
FROM python:3.12-slim

# Index of the wheels of PyTorch: .../whl/cpu, or .../whl/cu128 and the like for CUDA.
ARG TORCH=https://download.pytorch.org/whl/cpu

# HOME: a user who is given by number has none, and caches need one.
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp

# Before our code, so that a change of it does not download PyTorch again.
RUN pip install torch torchvision --index-url "$TORCH"

COPY . /opt/latentsmith
RUN pip install "/opt/latentsmith[train,evaluate,deep,lora,tables,video,page]"

WORKDIR /work
EXPOSE 7860
ENTRYPOINT ["latentsmith"]
CMD ["app", "--host", "0.0.0.0", "--model", "/opt/latentsmith/checkpoints/demo"]
