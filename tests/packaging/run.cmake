# run(COMMAND ARG...): ends the test with the command's output where it fails.
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${ARGV}\nleft with ${result}:\n${output}")
  endif()
endfunction()
