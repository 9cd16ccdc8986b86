package sqldb

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"text/template"

	"github.com/pressly/goose/v3"
)

// migrationFiles are templates of one statement each: where a database commits
// with every statement that defines data, a migration is then done or not done.
// Each may be run again.
//
//go:embed migrations/*.sql
var migrationFiles embed.FS

// versionTable keeps which migrations were made.
const versionTable = "kms_schema"

// migration is one step of the schema.
type migration struct {
	version   int64
	statement string
}

// migrations returns the steps in order.
func (l *dialect) migrations() ([]migration, error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql")
	if err != nil {
		return nil, fmt.Errorf("listing migrations: %w", err)
	}
	steps := make([]migration, 0, len(names))
	for _, name := range names {
		number, _, _ := strings.Cut(strings.TrimPrefix(name, "migrations/"), "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("reading the number of migration %q: %w", name, err)
		}
		text, err := template.ParseFS(migrationFiles, name)
		if err != nil {
			return nil, fmt.Errorf("reading migration %q: %w", name, err)
		}
		var statement strings.Builder
		if err := text.Execute(&statement, l.types); err != nil {
			return nil, fmt.Errorf("filling in migration %q: %w", name, err)
		}
		steps = append(steps, migration{version, statement.String()})
	}
	return steps, nil
}

// migrate brings the schema to what this program knows. The caller holds the
// lock.
func (d *DB) migrate(ctx context.Context) error {
	steps := make([]*goose.Migration, 0, len(d.steps))
	for _, step := range d.steps {
		run := func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, step.statement)
			return err
		}
		steps = append(steps, goose.NewGoMigration(step.version, &goose.GoFunc{RunTx: run}, nil))
	}
	provider, err := goose.NewProvider(d.dialect.goose, d.db, nil, goose.WithTableName(versionTable),
		goose.WithGoMigrations(steps...), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("preparing migrations: %w", err)
	}
	if err := d.mendVersions(ctx); err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		// What goose adds to the driver's error is the name of a step and no more.
		return d.fault(ctx, err)
	}
	return nil
}

// mendVersions gives an empty table of versions its first row. A process that
// died between the two leaves it so where making a table commits at once.
func (d *DB) mendVersions(ctx context.Context) error {
	ok, err := d.hasTable(ctx, versionTable)
	if err != nil || !ok {
		return err
	}
	_, err = d.db.ExecContext(ctx, "INSERT INTO "+versionTable+" (version_id, is_applied) SELECT 0, TRUE WHERE NOT EXISTS (SELECT 1 FROM "+versionTable+")")
	return d.fault(ctx, err)
}

// hasTable tells whether there is a table of this name.
func (d *DB) hasTable(ctx context.Context, name string) (bool, error) {
	var n int
	if err := d.db.QueryRowContext(ctx, d.dialect.rebind(d.dialect.tables), name).Scan(&n); err != nil {
		return false, d.fault(ctx, err)
	}
	return n > 0, nil
}

// schemaVersion returns the number of the last migration that was made, 0 for
// none.
func (d *DB) schemaVersion(ctx context.Context) (int64, error) {
	ok, err := d.hasTable(ctx, versionTable)
	if err != nil || !ok {
		return 0, err
	}
	var version sql.NullInt64
	err = d.db.QueryRowContext(ctx, "SELECT MAX(version_id) FROM "+versionTable).Scan(&version)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, d.fault(ctx, err)
	}
	return version.Int64, nil
}
