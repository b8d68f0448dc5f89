# What all targets share: language level, warnings, sanitizers, output folders.
if(PROJECT_IS_TOP_LEVEL)
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
  set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
  set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
  set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
endif()

# dropless_options(TARGET): applied to every target of the project.
function(dropless_options target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "EXECUTABLE")
    # Not -fPIE, which CMake would take: programs could then not share the libraries' precompiled header.
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fPIC>)
  else()
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  endif()
  # No contraction to FMA behind our back: sample order and the reference kernels are exact to the bit.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -ffp-contract=off>
    # The compiler's own garbage collection walks the precompiled header, half a gigabyte, again and again: a tenth of
    # a file's time, and it needs no more memory without.
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:--param=ggc-min-heapsize=2000000>
    # GCC 12 sees overlaps in std::string that are not there (its bug 105329).
    $<$<AND:$<COMPILE_LANG_AND_ID:CXX,GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-restrict>
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${DROPLESS_WERROR}>>:-Werror>)
  if(DROPLESS_SANITIZE)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${DROPLESS_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=undefined>)
    target_link_options(${target} PUBLIC -fsanitize=${DROPLESS_SANITIZE})
  endif()
endfunction()

# For folders whose code runs a few times a process, as verbs, readers of configs and tests do: -O1 takes half the time to
# compile of -O3 (0.7 of a file's whole), and inlines less of what every such file includes.
macro(dropless_runs_seldom)
  add_compile_options($<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O1>)
endmacro()

# dropless_room(NAME SOURCES a.cc ... DEPS target ...): the static library of one folder of train/.
function(dropless_room name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  add_library(dropless_${name} STATIC ${arg_SOURCES})
  dropless_options(dropless_${name})
  target_include_directories(dropless_${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(dropless_${name} PUBLIC ${arg_DEPS})
endfunction()

# For targets whose files include libtorch: its headers precompiled, and files compiled in fours. What the headers leave to
# be instantiated costs every translation unit two to three seconds, with nothing to show for it; in fours a file of these
# takes a third of its time. Files of one target may therefore not give two things in anonymous namespaces one name, but
# those after ALONE. OFF gives compile_commands.json an entry a file, which clang-tidy and editors need.
option(DROPLESS_BATCHES "Compile files that include libtorch in fours" ON)
function(dropless_uses_libtorch target)
  cmake_parse_arguments(arg "" "" "ALONE" ${ARGN})
  target_precompile_headers(${target} REUSE_FROM dropless_bridge)
  if(DROPLESS_BATCHES)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 4)
    set_source_files_properties(${arg_ALONE} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
endfunction()

# For programs that are built on one machine and run on another, as tests and benchmarks of GPU kernels are: the
# compiler's own libraries go into them. What is left to find are libc, libm and the driver.
function(dropless_carries_its_libraries target)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT DROPLESS_SANITIZE)
    target_link_options(${target} PRIVATE -static-libstdc++ -static-libgcc -Wl,--as-needed)
    # -fopenmp brings the shared one behind it, which is then not needed.
    target_link_libraries(${target} PRIVATE -Wl,--push-state,-Bstatic -lgomp -Wl,--pop-state)
  endif()
endfunction()

# dropless_test(NAME [GPU] SOURCES a.cc ... DEPS target ...): one GoogleTest program, its cases found by CTest.
# GPU: some do more where there is one; `./dev gpu` runs the program (label gpu).
function(dropless_test name)
  cmake_parse_arguments(arg "GPU" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  dropless_options(${name})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${arg_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  set(label)
  if(arg_GPU)
    set(label LABELS gpu)
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 600 ${label})
endfunction()
