-- What the database is bound to.
CREATE TABLE IF NOT EXISTS kms_meta (
    name {{.Text}} NOT NULL PRIMARY KEY,
    value {{.Bytes}} NOT NULL
) {{.KeyedTable}}
