# Fills BUNDLE:
#   bin/    PROGRAMS, stripped, and the shared libraries that they load, but for the system's own and
#           the toolkit's
#   bench/  gpu.sh and what it runs besides
#   deps/   HEADERS and LIBRARIES, to build the programs where they are not installed
# Refuses more than 50 MB.

set(most 50000000)
file(REMOVE_RECURSE ${BUNDLE}/bin ${BUNDLE}/bench/gpu.sh ${BUNDLE}/bench/peers)

set(library_dirs)
foreach(library ${LIBRARIES})
  get_filename_component(dir ${library} DIRECTORY)
  list(APPEND library_dirs ${dir})
endforeach()
file(GET_RUNTIME_DEPENDENCIES EXECUTABLES ${PROGRAMS}
  RESOLVED_DEPENDENCIES_VAR found UNRESOLVED_DEPENDENCIES_VAR missing
  DIRECTORIES ${library_dirs}
  PRE_EXCLUDE_REGEXES "^lib(c|m|dl|rt|pthread|gcc_s|stdc\\+\\+)\\.so" "^ld-linux" "^libcu")
if(missing)
  message(FATAL_ERROR "libraries that nobody has: ${missing}")
endif()
file(COPY ${PROGRAMS} DESTINATION ${BUNDLE}/bin)
file(COPY ${found} DESTINATION ${BUNDLE}/bin FOLLOW_SYMLINK_CHAIN)
foreach(program ${PROGRAMS})
  get_filename_component(name ${program} NAME)
  execute_process(COMMAND ${STRIP} ${BUNDLE}/bin/${name} COMMAND_ERROR_IS_FATAL ANY)
endforeach()

file(COPY ${SOURCE}/bench/gpu.sh ${SOURCE}/bench/peers DESTINATION ${BUNDLE}/bench)

if(NOT DEPS STREQUAL "${BUNDLE}/deps")
  file(REMOVE_RECURSE ${BUNDLE}/deps)
  foreach(header ${HEADERS})
    if(header MATCHES "/(CLI|nlohmann|doctest|fmt|spdlog)/[^/]+$")  # one of a folder of its own
      get_filename_component(header ${header} DIRECTORY)
    endif()
    file(COPY ${header} DESTINATION ${BUNDLE}/deps/include)
  endforeach()
  file(COPY ${LIBRARIES} ${found} DESTINATION ${BUNDLE}/deps/lib FOLLOW_SYMLINK_CHAIN)
endif()

file(GLOB_RECURSE all ${BUNDLE}/*)
set(total 0)
foreach(file ${all})
  if(NOT IS_SYMLINK ${file})
    file(SIZE ${file} size)
    math(EXPR total "${total} + ${size}")
  endif()
endforeach()
message(STATUS "${BUNDLE}: ${total} bytes")
if(total GREATER most)
  message(FATAL_ERROR "the bundle is too large: expected at most ${most} bytes, found ${total}")
endif()
