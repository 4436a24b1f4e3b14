# The CUDA backend: its sources, which are compiled twice (by nvcc for a GPU, by the host's compiler
# for the emulator in tests/simt), and whether this build has the first of the two.

set(OQ_CUDA_KERNELS
  attention.cu batch_rows.cu dense_linear.cu fill.cu flash.cu probe.cu quantize.cu rank.cu repack.cu
  rows.cu
  batch/w2.cu batch/w2five.cu batch/w3.cu batch/w4.cu batch/w5.cu batch/w6.cu batch/w7.cu
  batch/w8.cu
  packed/w2.cu packed/w2five.cu packed/w3.cu packed/w4.cu packed/w5.cu packed/w6.cu packed/w7.cu
  packed/w8.cu
  integer/w2.cu integer/w2five.cu integer/w3.cu integer/w4.cu integer/w5.cu integer/w6.cu
  integer/w7.cu integer/w8.cu)
list(TRANSFORM OQ_CUDA_KERNELS PREPEND ${PROJECT_SOURCE_DIR}/kernels/cuda/)
set(OQ_CUDA_HOST batch.cpp integer.cpp kernels.cpp layout.cpp)
list(TRANSFORM OQ_CUDA_HOST PREPEND ${PROJECT_SOURCE_DIR}/kernels/cuda/)
set(OQ_CUDA_BACKEND attention.cpp batch.cpp cuda_backend.cpp device_plan.cpp engine_tuner.cpp
  integers.cpp linear.cpp random_weight.cpp ranker.cpp steps.cpp weight.cpp)
list(TRANSFORM OQ_CUDA_BACKEND PREPEND ${PROJECT_SOURCE_DIR}/runtime/backend/cuda/)

# On where a CUDA toolkit of 12.0 or later is found, with cuBLAS's header (the library is loaded when
# it is wanted), unless somebody chose; builds with a sanitizer or for another machine are for the
# host alone.
find_package(CUDAToolkit 12.0 QUIET)
set(found OFF)
find_path(OQ_CUBLAS_HEADER cublas_v2.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
mark_as_advanced(OQ_CUBLAS_HEADER)
if(CUDAToolkit_FOUND AND CUDAToolkit_NVCC_EXECUTABLE AND OQ_CUBLAS_HEADER AND NOT OQ_SANITIZE
   AND NOT CMAKE_CROSSCOMPILING)
  set(found ON)
endif()
option(OQ_CUDA "Build the CUDA backend (needs nvcc 12.0 or later)" ${found})
# sm_80 runs on every device of 8.x; later ones than 9.0 take the PTX. scripts/nvcc.sh compiles all.
set(OQ_CUDA_ARCHITECTURES 80 90a CACHE STRING
  "GPU architectures, of which those that nvcc knows are built; the last one also as PTX")
if(NOT OQ_CUDA)
  return()
endif()
if(NOT CUDAToolkit_FOUND OR NOT CUDAToolkit_NVCC_EXECUTABLE OR NOT OQ_CUBLAS_HEADER)
  message(FATAL_ERROR
    "OQ_CUDA is on, but there is no nvcc of 12.0 or later on the PATH, or no cublas_v2.h beside it")
endif()

execute_process(COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} --list-gpu-code
  OUTPUT_VARIABLE known OUTPUT_STRIP_TRAILING_WHITESPACE)
string(REGEX MATCHALL "[0-9]+" known "${known}")
set(architectures)
foreach(architecture ${OQ_CUDA_ARCHITECTURES})
  string(REGEX MATCH "^[0-9]+" number ${architecture})
  if(number IN_LIST known)
    list(APPEND architectures ${architecture}-real)
    set(newest ${number})
  endif()
endforeach()
if(NOT architectures)
  message(FATAL_ERROR "nvcc knows none of OQ_CUDA_ARCHITECTURES: ${OQ_CUDA_ARCHITECTURES}")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${architectures} ${newest}-virtual)
set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
enable_language(CUDA)
# CMake 3.25 does not know that nvcc 12 has C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
message(STATUS "CUDA ${CUDAToolkit_VERSION}: ${CMAKE_CUDA_ARCHITECTURES}")
