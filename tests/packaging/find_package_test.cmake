# Installs the library of BUILD under WORK/prefix, then configures, builds and runs consumer/ and the
# examples of SOURCE against it.
file(REMOVE_RECURSE ${WORK})

include(${CMAKE_CURRENT_LIST_DIR}/run.cmake)

run(${CMAKE_COMMAND} --install ${BUILD} --config ${CONFIG} --component library --prefix ${WORK}/prefix)
# Moved: nothing installed may know where it was installed to.
file(RENAME ${WORK}/prefix ${WORK}/moved)
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/consumer -B ${WORK}/consumer -G ${GENERATOR}
  -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_BUILD_TYPE=${CONFIG}
  -DCMAKE_PREFIX_PATH=${WORK}/moved -DEXPECTED_VERSION=${VERSION})
run(${CMAKE_COMMAND} --build ${WORK}/consumer --config ${CONFIG})
find_program(consumer consumer PATHS ${WORK}/consumer ${WORK}/consumer/${CONFIG} NO_DEFAULT_PATH REQUIRED)
run(${consumer})

# The examples, each of which checks its own result; as Release: 02 trains.
run(${CMAKE_COMMAND} -S ${SOURCE}/examples -B ${WORK}/examples -G ${GENERATOR}
  -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_PREFIX_PATH=${WORK}/moved)
run(${CMAKE_COMMAND} --build ${WORK}/examples --config Release)
run(${CTEST} --test-dir ${WORK}/examples -C Release --output-on-failure --no-tests=error)

# The same program without CMake: flags from pkg-config, whose file must know of the move too.
find_program(pkg_config pkg-config)
file(GLOB_RECURSE pc_file ${WORK}/moved/*/dropless.pc)
if(pkg_config AND pc_file)
  get_filename_component(pc_folder ${pc_file} DIRECTORY)
  execute_process(COMMAND ${CMAKE_COMMAND} -E env PKG_CONFIG_PATH=${pc_folder} ${pkg_config} --cflags --libs dropless
    OUTPUT_VARIABLE flags COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags UNIX_COMMAND "${flags}")
  run(${COMPILER} -std=c++20 ${CMAKE_CURRENT_LIST_DIR}/consumer/main.cc ${flags} -o ${WORK}/by_pkg_config)
  run(${WORK}/by_pkg_config)
endif()
