# The CUDA backend: its sources, which are compiled twice (by nvcc for a GPU, by the host's compiler
# for the emulator in tests/simt), and whether this build has the first of the two.

set(OQ_CUDA_KERNELS
  attention.cu dense_linear.cu repack.cu rows.cu
  packed/w2.cu packed/w2five.cu packed/w3.cu packed/w4.cu packed/w5.cu packed/w6.cu packed/w7.cu
  packed/w8.cu)
list(TRANSFORM OQ_CUDA_KERNELS PREPEND ${PROJECT_SOURCE_DIR}/kernels/cuda/)
set(OQ_CUDA_HOST
  ${PROJECT_SOURCE_DIR}/kernels/cuda/kernels.cpp ${PROJECT_SOURCE_DIR}/kernels/cuda/layout.cpp)
set(OQ_CUDA_BACKEND attention.cpp batch.cpp cuda_backend.cpp linear.cpp weight.cpp)
list(TRANSFORM OQ_CUDA_BACKEND PREPEND ${PROJECT_SOURCE_DIR}/runtime/backend/cuda/)
