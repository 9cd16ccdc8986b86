package sqldb

import (
	"fmt"
	"os"

	"teekms/internal/storage"
)

// place is a file of SQLite under the name that it was opened by. SQLite goes on
// with a file that was removed, or replaced by another: what it writes there is
// gone when the process ends.
type place struct {
	path string
	info os.FileInfo
	// log tells that changes are first written to a file of their own.
	log bool
}

func logOf(path string) string { return path + "-wal" }

// remember notes which file it is. It is called when the database was read from.
func (p *place) remember() error {
	if p == nil {
		return nil
	}
	var err error
	if p.info, err = os.Lstat(p.path); err != nil {
		return fmt.Errorf("looking at the database: %w", err)
	}
	_, err = os.Lstat(logOf(p.path))
	p.log = err == nil
	return nil
}

// check tells whether the file is still at its place, and its log beside it. Of
// what is no file nothing is asked.
func (p *place) check() error {
	if p == nil || p.info == nil {
		return nil
	}
	info, err := os.Lstat(p.path)
	switch {
	case err != nil || !os.SameFile(info, p.info):
		return fmt.Errorf("%w: its file was removed or replaced while it was open", storage.ErrIntegrity)
	case info.Size() < p.info.Size():
		return fmt.Errorf("%w: its file was cut off while it was open", storage.ErrIntegrity)
	}
	if !p.log {
		return nil
	}
	if _, err := os.Lstat(logOf(p.path)); err != nil {
		return fmt.Errorf("%w: its write-ahead log was removed while it was open", storage.ErrIntegrity)
	}
	return nil
}
