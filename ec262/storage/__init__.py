"""Files: the input of jobs and their output, on this machine or wherever fsspec reaches. The only door to either."""
