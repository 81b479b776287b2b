#!/bin/bash
# Builds cluescope for NVIDIA GPUs with a CUDA compiler from PyPI, on a machine that needs neither a GPU nor a CUDA
# installation (Linux on x86-64). Nothing is written outside FOLDER and cargo's target folder.
#
#   scripts/cuda-build.sh FOLDER [ARGUMENTS FOR cargo build…]
#
#   FOLDER             where the toolkit goes (about 1.3 GB); reused when it is complete
#   CUDA_COMPUTE_CAP   the card's compute capability without the dot: 80 A100, 86 RTX 30, 89 RTX 40, 90 H100 (default 80)
#   PYTHON             a Python with pip (default python3)
#
# Details and what runs where: docs/gpu.md.
set -euo pipefail

die() { echo "cuda-build.sh: $*" >&2; exit 1; }

[ $# -ge 1 ] || die "usage: scripts/cuda-build.sh FOLDER [arguments for cargo build]"
mkdir -p "$1" || die "cannot create the folder $1"
folder=$(cd "$1" && pwd); shift
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}

[ "$(uname -sm)" = "Linux x86_64" ] || die "only Linux on x86-64 is known to work, this is $(uname -sm); install NVIDIA's toolkit and run: cargo build --release --features cuda"
[[ $CUDA_COMPUTE_CAP =~ ^[0-9]{2,3}[a-z]?$ ]] || die "CUDA_COMPUTE_CAP is '$CUDA_COMPUTE_CAP'; it must be digits such as 80 or 90"
[ "${CUDA_COMPUTE_CAP%[a-z]}" -ge 75 ] || die "CUDA_COMPUTE_CAP is $CUDA_COMPUTE_CAP; CUDA 13 compiles for 75 (Turing) and above"
command -v cargo > /dev/null || die "no cargo on the PATH; install Rust from https://rustup.rs"
command -v g++ > /dev/null || die "no g++ on the PATH; nvcc hands the host's half of each kernel to it (Debian, Ubuntu: apt install g++)"
"$python" -m pip --version > /dev/null 2>&1 || die "'$python -m pip' does not run; set PYTHON to a Python with pip (Debian, Ubuntu: apt install python3-pip)"

# What each package brings, and one file that shows it is there. cuBLAS counts like the toolkit, cuRAND does not.
packages=(
    "nvidia-cuda-nvcc==13.0.*    bin/nvcc"
    "nvidia-nvvm==13.0.*         nvvm/bin/cicc"
    "nvidia-cuda-crt==13.0.*     include/crt/host_config.h"
    "nvidia-cuda-runtime==13.0.* include/cuda_runtime.h"
    "nvidia-cuda-cccl==13.0.*    include/cccl/cuda/std/type_traits"
    "nvidia-cuda-nvrtc==13.0.*   lib/libnvrtc.so.13"
    "nvidia-cublas==13.0.*       lib/libcublas.so.13"
    "nvidia-curand==10.4.0.*     lib/libcurand.so.10"
)
toolkit=$folder/nvidia/cu13
missing=()
for line in "${packages[@]}"; do
    read -r package file <<< "$line"
    [ -e "$toolkit/$file" ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "cuda-build.sh: installing ${missing[*]} into $folder" >&2
    "$python" -m pip install --quiet --no-deps --only-binary :all: --upgrade --target "$folder" "${missing[@]}" \
        || die "pip could not install ${missing[*]}; its message is above"
fi
for line in "${packages[@]}"; do
    read -r package file <<< "$line"
    [ -e "$toolkit/$file" ] || die "$package is installed but $toolkit/$file is missing; delete $folder and run again, and report it if that does not help"
done

# The packages carry libraries under their versioned names only; the linker asks for the plain ones.
for library in cudart.so.13 nvrtc.so.13 cublas.so.13 cublasLt.so.13 curand.so.10; do
    [ -e "$toolkit/lib/lib$library" ] || die "$toolkit/lib/lib$library is missing; delete $folder and run again"
    ln -sfn "lib$library" "$toolkit/lib/lib${library%.so.*}.so"
done
ln -sfn lib "$toolkit/lib64"

# libcuda.so.1 belongs to the driver, so no package has it. A stand-in with every function of cuda.h lets the linker
# finish; each returns CUDA_ERROR_STUB_LIBRARY (34). It lies apart, where only the linker looks.
stubs=$toolkit/lib/stubs
if [ ! -e "$stubs/libcuda.so" ]; then
    mkdir -p "$stubs"
    echo '#include <cuda.h>' | g++ -x c -E -P -I"$toolkit/include" - 2> "$folder/stub.log" \
        | grep -oE '\bcu[A-Z][A-Za-z0-9_]* *\(' | tr -d ' (' | sort -u \
        | sed 's/.*/int &(void) { return 34; }/' > "$folder/stub.c" \
        || die "cuda.h could not be read; see $folder/stub.log"
    [ "$(wc -l < "$folder/stub.c")" -gt 300 ] || die "found only $(wc -l < "$folder/stub.c") functions in cuda.h; see $folder/stub.log"
    g++ -x c -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$stubs/libcuda.so" "$folder/stub.c" 2>> "$folder/stub.log" \
        || die "the stand-in for libcuda did not compile; see $folder/stub.log"
    ln -sfn libcuda.so "$stubs/libcuda.so.1"
fi

export CUDA_HOME=$toolkit PATH=$toolkit/bin:$PATH NVCC=$toolkit/bin/nvcc
"$NVCC" --version > "$folder/nvcc.log" 2>&1 || die "nvcc does not start; see $folder/nvcc.log"
printf '__global__ void one(float *x) { x[threadIdx.x] += 1; }\n' > "$folder/one.cu"
"$NVCC" -arch="sm_$CUDA_COMPUTE_CAP" -c "$folder/one.cu" -o "$folder/one.o" >> "$folder/nvcc.log" 2>&1 \
    || die "nvcc cannot compile a one-line kernel for sm_$CUDA_COMPUTE_CAP; see $folder/nvcc.log"

cd "$repository"
# The last arguments win over these; a GPU build next to a CPU one keeps both with --target-dir.
cargo build --release --features cuda "$@" || die "cargo build failed; its message is above"
cat >&2 << END
cuda-build.sh: built for compute capability $CUDA_COMPUTE_CAP. To run it, on a machine with an NVIDIA driver for CUDA 13 (580 or newer):
  export LD_LIBRARY_PATH=$toolkit/lib
END
