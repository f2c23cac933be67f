"""Read the records of a file: JSON lines, a JSON list, CSV, Excel or Parquet, each also packed with gzip."""
