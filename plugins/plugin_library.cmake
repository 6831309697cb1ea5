# The library that TensorRT loads: entry points only, no TensorRT library linked, CUDA's runtime inside.
# Without LEGOKV_PLUGINS it has the launchers alone, for programs that call them.
if(LEGOKV_PLUGINS AND NOT EXISTS "${LEGOKV_TENSORRT_INCLUDE}/NvInferRuntime.h")
  message(FATAL_ERROR "LEGOKV_TENSORRT_INCLUDE='${LEGOKV_TENSORRT_INCLUDE}' has no NvInferRuntime.h: "
                      "give the include folder of TensorRT 10.3 or later")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${LEGOKV_ARCHITECTURES})
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)

string(REPLACE ";" " " architectures "${LEGOKV_ARCHITECTURES}")
add_library(legokv_plugins SHARED
    ${LEGOKV_KERNELS}
    ${LEGOKV_LAUNCHERS})
target_include_directories(legokv_plugins PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} include)
target_include_directories(legokv_plugins SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
if(LEGOKV_PLUGINS)
  target_sources(legokv_plugins PRIVATE
      plugin.cpp kv_import/plugin.cpp legolink_attention/plugin.cpp)
  target_include_directories(legokv_plugins SYSTEM PRIVATE ${LEGOKV_TENSORRT_INCLUDE})
endif()
target_compile_definitions(legokv_plugins PRIVATE
    LEGOKV_VERSION="${LEGOKV_VERSION}" LEGOKV_FORM="cuda" LEGOKV_ARCHITECTURES="${architectures}")
target_compile_options(legokv_plugins PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>)
set(exports ${CMAKE_CURRENT_SOURCE_DIR}/exports.map)
target_link_options(legokv_plugins PRIVATE "LINKER:--version-script=${exports}" LINKER:--no-undefined)
set_target_properties(legokv_plugins PROPERTIES LINK_DEPENDS ${exports})
