package sqldb

import (
	"context"
	"crypto/hmac"
	"database/sql"
	"errors"
	"fmt"

	"teekms/internal/storage"
)

// The binding is the row "root" of kms_meta: the SHA-256 of the root public key,
// followed by an HMAC that only a KMS of these root keys can make.
const (
	bindingName = "root"
	bindingSize = 64
)

// establish makes the database ours: refuses another KMS's and a newer
// program's before anything is written, migrates and binds.
func (d *DB) establish(ctx context.Context) error {
	ready, err := d.inspect(ctx)
	if err != nil || ready {
		return err
	}
	unlock, err := d.dialect.lock(ctx, d.db)
	if err != nil {
		return d.fault(ctx, err)
	}
	defer unlock()
	// Another process may have done it in the meantime.
	if ready, err = d.inspect(ctx); err != nil || ready {
		return err
	}
	if err := d.migrate(ctx); err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	if ready, err = d.inspect(ctx); err != nil || ready {
		return err
	}
	return d.bind(ctx)
}

// inspect only reads. It tells whether the database is bound to this KMS and has
// the current schema.
func (d *DB) inspect(ctx context.Context) (ready bool, err error) {
	bound, err := d.checkBinding(ctx)
	if err != nil {
		return false, err
	}
	version, err := d.schemaVersion(ctx)
	if err != nil {
		return false, err
	}
	current := d.steps[len(d.steps)-1].version
	if version > current {
		return false, &fault{text: fmt.Sprintf("the database has schema %d, this program knows no newer than %d: use the program that made it", version, current)}
	}
	return bound && version == current, nil
}

// checkBinding tells whether the database is bound, and refuses one that is
// bound to other root keys.
func (d *DB) checkBinding(ctx context.Context) (bound bool, err error) {
	ok, err := d.hasTable(ctx, "kms_meta")
	if err != nil || !ok {
		return false, err
	}
	var value []byte
	err = d.db.QueryRowContext(ctx, "SELECT value FROM kms_meta WHERE name = '"+bindingName+"'").Scan(&value)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return false, nil
	case err != nil:
		return false, d.fault(ctx, err)
	case len(value) != bindingSize:
		return false, fmt.Errorf("%w: its binding to a root key is malformed", storage.ErrIntegrity)
	}
	if [32]byte(value) != d.root {
		return false, &storage.OtherRootError{Database: [32]byte(value), KMS: d.root}
	}
	if !hmac.Equal(value, d.binding()) {
		return false, fmt.Errorf("%w: its binding to the root key was not made by this KMS", storage.ErrIntegrity)
	}
	return true, nil
}

func (d *DB) binding() []byte {
	return append(d.root[:], mac(d.bindingKey, "teekms database binding v1", d.root[:])...)
}

// bind writes the binding and the first head. A head that is there already was
// left by somebody who took the binding away.
func (d *DB) bind(ctx context.Context) error {
	tx, err := d.db.BeginTx(ctx, d.dialect.write)
	if err != nil {
		return d.fault(ctx, err)
	}
	// After Commit this does nothing.
	defer func() { _ = tx.Rollback() }()
	_, err = tx.ExecContext(ctx, "INSERT INTO kms_head (id, revision) VALUES (1, 0)")
	if f := d.asFault(ctx, err); f != nil && f.kind == unique {
		return fmt.Errorf("%w: its binding to a root key was removed", storage.ErrIntegrity)
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, d.dialect.rebind("INSERT INTO kms_meta (name, value) VALUES (?, ?)"), bindingName, d.binding())
	}
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		return d.fault(ctx, err)
	}
	return nil
}
