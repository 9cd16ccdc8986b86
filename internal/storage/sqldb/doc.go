// Package sqldb keeps the audit log and the registry in SQLite, PostgreSQL, MySQL
// or MariaDB (docs/storage.md).
//
// There is one implementation over database/sql; what the databases do
// differently is in their dialect. A transaction that appends to the log locks
// the one row of kms_head, and so the log has one order however many processes
// write it.
package sqldb
