"""Archives, their pictures, files and indexes."""
