-- The records of the audit log.
CREATE TABLE IF NOT EXISTS kms_audit (
    seq {{.Int}} NOT NULL PRIMARY KEY,
    event_id {{.ID}} NOT NULL UNIQUE,
    body {{.Bytes}} NOT NULL,
    nodes {{.Bytes}} NOT NULL
) {{.Table}}
