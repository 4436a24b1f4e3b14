# The gpu preset: programs that run on a machine with a GPU where nothing can be installed, and what
# it takes to build them there. Headers and libraries come from OQ_DEPS, a bundle's own folder, or
# from the system; fmt and spdlog are headers alone. cuBLAS is the other machine's.

set(OQ_DEPS "" CACHE PATH "A bundle's deps/; none: the system's headers and libraries")
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH "$ORIGIN")
add_link_options(-Wl,--disable-new-dtags)  # RPATH, which the libraries' own needs follow too
if(OQ_DEPS)
  add_link_options(-Wl,-rpath-link,${OQ_DEPS}/lib)
endif()

# oq_find_dependency(VARIABLE header|library NAME)
function(oq_find_dependency variable kind name)
  if(kind STREQUAL "header")
    find_path(${variable} ${name} HINTS ${OQ_DEPS}/include REQUIRED)
  else()
    find_library(${variable} ${name} HINTS ${OQ_DEPS}/lib REQUIRED)
  endif()
endfunction()

set(OQ_BUNDLE_HEADERS CLI/CLI.hpp nlohmann/json.hpp doctest/doctest.h fmt/format.h spdlog/spdlog.h
  sentencepiece_processor.h pcre2.h)
set(include_dirs)
foreach(header ${OQ_BUNDLE_HEADERS})
  string(MAKE_C_IDENTIFIER OQ_${header} variable)
  oq_find_dependency(${variable} header ${header})
  list(APPEND include_dirs ${${variable}})
endforeach()
oq_find_dependency(OQ_sentencepiece library sentencepiece)
oq_find_dependency(OQ_pcre2 library pcre2-8)
list(REMOVE_DUPLICATES include_dirs)
list(REMOVE_ITEM include_dirs ${CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES})

# oq_dependency(NAME [DEFINITIONS ...] [LIBRARY ...]): what find_package would have given
function(oq_dependency name)
  cmake_parse_arguments(A "" "LIBRARY" "DEFINITIONS" ${ARGN})
  string(MAKE_C_IDENTIFIER dependency_${name} target)
  add_library(${target} INTERFACE)
  target_include_directories(${target} SYSTEM INTERFACE ${include_dirs})
  target_compile_definitions(${target} INTERFACE ${A_DEFINITIONS})
  target_link_libraries(${target} INTERFACE ${A_LIBRARY})
  add_library(${name} ALIAS ${target})
endfunction()
oq_dependency(fmt::fmt DEFINITIONS FMT_HEADER_ONLY)
oq_dependency(CLI11::CLI11)
oq_dependency(nlohmann_json::nlohmann_json)
oq_dependency(doctest::doctest)
oq_dependency(spdlog::spdlog DEFINITIONS SPDLOG_FMT_EXTERNAL FMT_HEADER_ONLY)
oq_dependency(PkgConfig::sentencepiece LIBRARY ${OQ_sentencepiece})
oq_dependency(PkgConfig::pcre2 LIBRARY ${OQ_pcre2})

# Called last. Target `bundle`: build/gpu/bundle with programs, their libraries, the scripts that
# run them, and the dependencies to build them anew.
function(oq_make_bundle)
  set(programs oq-bench oq-bench-gpu test-gpu)
  set(files)
  foreach(program ${programs})
    if(NOT TARGET ${program})
      message(FATAL_ERROR "the bundle wants ${program}: are the tests on, and is cuBLAS in the toolkit?")
    endif()
    list(APPEND files $<TARGET_FILE:${program}>)
  endforeach()
  set(headers)
  foreach(header ${OQ_BUNDLE_HEADERS})
    string(MAKE_C_IDENTIFIER OQ_${header} variable)
    list(APPEND headers ${${variable}}/${header})
  endforeach()
  add_custom_target(bundle ALL
    COMMAND ${CMAKE_COMMAND} "-DPROGRAMS=${files}" "-DHEADERS=${headers}"
      "-DLIBRARIES=${OQ_sentencepiece};${OQ_pcre2}" -DBUNDLE=${CMAKE_BINARY_DIR}/bundle
      -DSOURCE=${PROJECT_SOURCE_DIR} -DSTRIP=${CMAKE_STRIP} -DDEPS=${OQ_DEPS}
      -P ${PROJECT_SOURCE_DIR}/cmake/make_bundle.cmake
    DEPENDS ${programs} VERBATIM)
endfunction()
