# Flags of every target of OQ, and the two ways to make one.

if(OQ_DEPS)  # a bundle is built by compilers that nobody has seen, in minutes that are lent
  set(strict)
  set(strict_cuda)
else()
  set(strict -Werror)
  set(strict_cuda -Werror=all-warnings)
endif()
add_library(oq_flags INTERFACE)
target_compile_options(oq_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;${strict};-fno-math-errno>
  $<$<COMPILE_LANGUAGE:CUDA>:${strict_cuda};--expt-relaxed-constexpr>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 warns of overlaps inside std::string that cannot happen (GCC bug 105651).
  target_compile_options(oq_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
endif()
target_include_directories(oq_flags INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
if(OQ_SANITIZE)
  target_compile_options(oq_flags INTERFACE -fsanitize=${OQ_SANITIZE} -fno-sanitize-recover=all
                                            -fno-omit-frame-pointer)
  target_link_options(oq_flags INTERFACE -fsanitize=${OQ_SANITIZE})
endif()
if(OQ_FUZZ)
  target_compile_options(oq_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# oq_library(NAME SOURCES... [PUBLIC libs] [PRIVATE libs])
function(oq_library name)
  cmake_parse_arguments(A "" "" "PUBLIC;PRIVATE" ${ARGN})
  add_library(${name} STATIC ${A_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PUBLIC $<BUILD_INTERFACE:oq_flags> ${A_PUBLIC}
                                PRIVATE ${A_PRIVATE})
endfunction()

# oq_program(NAME SOURCES... [PRIVATE libs]): a tool of the installation
function(oq_program name)
  cmake_parse_arguments(A "" "" "PRIVATE" ${ARGN})
  add_executable(${name} ${A_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE oq_flags ${A_PRIVATE})
  install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()
