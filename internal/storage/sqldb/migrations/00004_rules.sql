-- The rules of the registry.
CREATE TABLE IF NOT EXISTS kms_rules (
    kind {{.Short}} NOT NULL,
    subject {{.Text}} NOT NULL,
    value {{.Long}} NOT NULL,
    revision {{.Int}} NOT NULL,
    mac {{.Bytes}} NOT NULL,
    PRIMARY KEY (kind, subject, value)
) {{.KeyedTable}}
