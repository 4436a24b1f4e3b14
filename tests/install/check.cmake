# Installs OQ into a fresh folder, builds the example here against it, and runs both on a tiny
# model: the example must print what oq-run prints.
#
# cmake -DBUILD=<OQ's build> -DSOURCE=<this folder> -DWORK=<scratch> -DCOMPILER=<C++> -P check.cmake

function(run)
  execute_process(COMMAND ${ARGN} OUTPUT_VARIABLE output ERROR_VARIABLE output_error
    RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${ARGN}\nended with ${code}\n${output}${output_error}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/oq)
foreach(tool convert run eval info)
  run(${WORK}/oq/bin/oq-${tool} --version)
endforeach()

# Strict flags of OQ's own, or its source folder, would be leaks: the example brings neither.
file(GLOB exported ${WORK}/oq/lib*/cmake/oq/*.cmake ${WORK}/oq/lib*/*/cmake/oq/*.cmake)
list(LENGTH exported files)
if(files LESS 4)
  message(FATAL_ERROR "package files are missing: ${exported}")
endif()
get_filename_component(root ${SOURCE}/../.. ABSOLUTE)
foreach(file IN LISTS exported)
  file(READ ${file} text)
  foreach(leak -Werror oq_flags ${root} ${BUILD})
    string(FIND "${text}" "${leak}" at)
    if(NOT at EQUAL -1)
      message(FATAL_ERROR "${file} has ${leak} in it")
    endif()
  endforeach()
endforeach()

run(${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK}/build -DCMAKE_PREFIX_PATH=${WORK}/oq
  -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_BUILD_TYPE=Release)
run(${CMAKE_COMMAND} --build ${WORK}/build)

run(${BUILD}/bin/oq-tiny-gguf ${WORK}/tiny.gguf)
run(${WORK}/oq/bin/oq-convert ${WORK}/tiny.gguf -o ${WORK}/tiny.oq --scheme w4a16g32 --quiet)
run(${WORK}/build/example ${WORK}/tiny.oq "the cat and the dog" 12)
set(example "${output}")
run(${WORK}/oq/bin/oq-run ${WORK}/tiny.oq -p "the cat and the dog" -n 12 --threads 1 --quiet)
if(NOT example STREQUAL output OR example STREQUAL "\n")
  message(FATAL_ERROR "the example prints '${example}', oq-run '${output}'")
endif()
file(REMOVE_RECURSE ${WORK})
