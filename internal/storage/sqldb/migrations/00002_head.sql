-- The head of the audit log, sealed, and the revision of the registry: one row.
CREATE TABLE IF NOT EXISTS kms_head (
    id {{.Int}} NOT NULL PRIMARY KEY,
    head {{.Bytes}},
    revision {{.Int}} NOT NULL
) {{.Table}}
