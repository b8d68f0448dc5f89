# Fails where PROGRAM needs a shared library of the compiler's.
execute_process(COMMAND readelf -d ${PROGRAM} OUTPUT_VARIABLE sections RESULT_VARIABLE failed)
string(REGEX MATCH "lib(stdc|gomp|gcc_s)[^]]*" needed "${sections}")
if(failed OR NOT sections MATCHES NEEDED OR needed)
  message(FATAL_ERROR "${PROGRAM} needs ${needed}")
endif()
