# Rust notebooks without compiling for half an hour: the program, the prebuilt library, the compiler it needs, JupyterLab.
#
#   docker build -t cluescope .
#   docker run --rm -p 127.0.0.1:8888:8888 cluescope
#
# The first stage compiles everything once; the second keeps what cells link against.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --features kernel
# Builds the library for notebooks as well; its folder is named by a key.
RUN CLUESCOPE_KERNEL_HOME=/kernel target/release/cluescope kernel install --prefix /spec \
    && mkdir -p /opt/cluescope/bin /opt/cluescope/lib /opt/cluescope/share/cluescope \
    && cp target/release/cluescope /opt/cluescope/bin/ \
    && cp -r /kernel/prelude/*/ /opt/cluescope/lib/cluescope \
    && cp -r datasets/nano /opt/cluescope/share/cluescope/

# The same compiler: no other can link against the library.
FROM rust:1.95-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/jupyter \
    && /opt/jupyter/bin/pip install --no-cache-dir jupyterlab
COPY --from=build /opt/cluescope /opt/cluescope
COPY notebooks /home/reader/notebooks/
COPY docs /home/reader/docs/
# What notebooks read besides the bundled pair.
COPY datasets/paragraphs.json /home/reader/datasets/
COPY datasets/results/smollm2-135m /home/reader/datasets/results/smollm2-135m/
COPY tests/fixtures/families/llama2/model.gguf /home/reader/tests/fixtures/families/llama2/
RUN useradd --create-home reader && chown -R reader /home/reader
USER reader
WORKDIR /home/reader
ENV PATH=/opt/cluescope/bin:/opt/jupyter/bin:$PATH
# The image answers a cell and has its pair, or it is not made.
COPY scripts/shipped.ipynb /tmp/
RUN cluescope run /tmp/shipped.ipynb --out /tmp/done && rm -r /tmp/done
# JupyterLab would leave charts out until a notebook is run.
RUN jupyter trust notebooks/*.ipynb
EXPOSE 8888
# JupyterLab listens on the container's own address; kernels stay on its loopback.
CMD ["cluescope", "lab", "notebooks", "--", "--ip=0.0.0.0", "--no-browser"]
