"""What every module stands on: trees, checks, dtypes, packed bits, the jaxpr walk."""
