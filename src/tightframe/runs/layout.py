"""Names of the files in a directory of runs."""

RECORDS_FILE = "records.jsonl"
CONFIG_FILE = "config.yaml"
CLASSES_FILE = "classes.json"
HIERARCHY_FILE = "hierarchy.json"
VERSIONS_FILE = "versions.json"
TIMING_FILE = "timing.json"
SNAPSHOT_DIR = "snapshots"
