# What `cmake --install` adds to the tools: the libraries, their headers, and find_package(oq).

include(CMakePackageConfigHelpers)

set(oq_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/oq)
set(oq_include_dir ${CMAKE_INSTALL_INCLUDEDIR}/oq)  # for #include "runtime/decoder.h"

foreach(room format kernels tokenizer runtime)
  set_target_properties(oq_${room} PROPERTIES EXPORT_NAME ${room})
  target_compile_features(oq_${room} INTERFACE cxx_std_20)
  target_include_directories(oq_${room} INTERFACE $<INSTALL_INTERFACE:${oq_include_dir}>)
  if(OQ_SANITIZE)  # the libraries then call the sanitizers' runtime
    target_link_options(oq_${room} INTERFACE $<INSTALL_INTERFACE:-fsanitize=${OQ_SANITIZE}>)
  endif()
  install(TARGETS oq_${room} EXPORT oqTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
endforeach()

# All but what is private to a room.
install(DIRECTORY format kernels runtime DESTINATION ${oq_include_dir}
  FILES_MATCHING PATTERN "*.h"
  PATTERN file_layout.h EXCLUDE PATTERN simd EXCLUDE PATTERN x86 EXCLUDE
  PATTERN neon EXCLUDE PATTERN backend/cpu EXCLUDE)

install(EXPORT oqTargets NAMESPACE oq:: DESTINATION ${oq_package_dir})
configure_package_config_file(cmake/oqConfig.cmake.in ${CMAKE_BINARY_DIR}/oqConfig.cmake
  INSTALL_DESTINATION ${oq_package_dir})
# Before 1.0, a minor version may change everything.
write_basic_package_version_file(${CMAKE_BINARY_DIR}/oqConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/oqConfig.cmake ${CMAKE_BINARY_DIR}/oqConfigVersion.cmake
  DESTINATION ${oq_package_dir})
