# Builds and runs a project that takes the sources of SOURCE with add_subdirectory: the library alone, no
# tests, no training system, nothing installed. In Debug, as many a project first is, and in a quarter of the time.
file(REMOVE_RECURSE ${WORK})
include(${CMAKE_CURRENT_LIST_DIR}/run.cmake)
set(launcher)
if(LAUNCHER)
  set(launcher -DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER})
endif()
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/subdirectory -B ${WORK} -G ${GENERATOR} ${launcher}
  -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_BUILD_TYPE=Debug
  -DDROPLESS_SOURCE=${SOURCE})
run(${CMAKE_COMMAND} --build ${WORK} --config Debug)
find_program(consumer consumer PATHS ${WORK} ${WORK}/Debug NO_DEFAULT_PATH REQUIRED)
run(${consumer})
# A part of somebody's project leaves its output folders and its list of tests alone.
foreach(left bin/dropless tests compile_commands.json)
  if(EXISTS ${WORK}/${left} OR EXISTS ${WORK}/dropless/${left})
    message(FATAL_ERROR "add_subdirectory made ${left}")
  endif()
endforeach()
