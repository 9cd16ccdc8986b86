package sqldb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/sqldb"
)

func modeOf(t *testing.T, name string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

func TestModesWhateverTheUmask(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	parent := t.TempDir()
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(parent, "a", "b")
	db := open(t, config(dir))
	commit(t, db, audit.Batch{Rows: rows(0, 1)})
	for name, want := range map[string]fs.FileMode{
		parent: fs.ModeDir | 0o755, filepath.Join(parent, "a"): fs.ModeDir | 0o700, dir: fs.ModeDir | 0o700,
		filepath.Join(dir, "kms.db"): 0o600, filepath.Join(dir, "kms.db-wal"): 0o600, filepath.Join(dir, "kms.db-shm"): 0o600,
	} {
		if got := modeOf(t, name); got != want {
			t.Errorf("mode of %s = %v, want %v", name, got, want)
		}
	}
	if got := db.Warnings(); len(got) != 0 {
		t.Errorf("Warnings = %q, want none", got)
	}
}

func TestWarnsOfAFileThatOthersRead(t *testing.T) {
	dir := t.TempDir()
	use(t, config(dir), func(*sqldb.DB) {})
	if err := os.Chmod(filepath.Join(dir, storage.File), 0o644); err != nil {
		t.Fatal(err)
	}
	got := open(t, config(dir)).Warnings()
	if len(got) != 1 || !strings.Contains(got[0], "its mode is 0644") {
		t.Errorf("Warnings = %q, want one of the mode", got)
	}
}

func TestOpenRefusesFiles(t *testing.T) {
	filled := func(n int) func(t *testing.T, dir, file string) {
		return func(t *testing.T, _, file string) {
			if err := os.WriteFile(file, bytes.Repeat([]byte("no database "), n)[:n], 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	written := func(change ...func(*storage.Config)) func(t *testing.T, dir, file string) {
		return func(t *testing.T, dir, _ string) {
			use(t, config(dir, change...), func(db *sqldb.DB) { commit(t, db, audit.Batch{Rows: rows(0, 10)}) })
		}
	}
	none := func(*storage.Config) {}
	both := func(a, b func(*storage.Config)) func(*storage.Config) {
		return func(c *storage.Config) { a(c); b(c) }
	}
	tests := []struct {
		name    string
		prepare func(t *testing.T, dir, file string)
		change  func(*storage.Config)
		want    string
		is      error
	}{
		{"a link", func(t *testing.T, dir, file string) {
			target := filepath.Join(dir, "target")
			if err := errors.Join(os.WriteFile(target, nil, 0o600), os.Symlink(target, file)); err != nil {
				t.Fatal(err)
			}
		}, none, "is a symbolic link", nil},
		{"a link to nothing", func(t *testing.T, dir, file string) {
			if err := os.Symlink(filepath.Join(dir, "target"), file); err != nil {
				t.Fatal(err)
			}
		}, none, "is a symbolic link", nil},
		{"a link in place of the log's index", func(t *testing.T, dir, file string) {
			if err := os.Symlink(filepath.Join(dir, "target"), file+"-shm"); err != nil {
				t.Fatal(err)
			}
		}, none, "too many levels of symbolic links", syscall.ELOOP},
		{"a link in place of the log", func(t *testing.T, dir, file string) {
			if err := os.Symlink(filepath.Join(dir, "target"), file+"-wal"); err != nil {
				t.Fatal(err)
			}
		}, none, "the database cannot be opened", nil},
		{"a directory", func(t *testing.T, _, file string) {
			if err := os.Mkdir(file, 0o700); err != nil {
				t.Fatal(err)
			}
		}, none, "is not a file", nil},
		{"a pipe", func(t *testing.T, _, file string) {
			if err := syscall.Mkfifo(file, 0o600); err != nil {
				t.Fatal(err)
			}
		}, none, "is not a file", nil},
		{"a few bytes", filled(10), none, "wrong key, or not the database of a KMS", storage.ErrWrongKey},
		{"a page of text", filled(4096), none, "wrong key, or not the database of a KMS", storage.ErrWrongKey},
		{"a few bytes, encrypted", filled(10), encrypted, "is not a multiple of 4096 bytes", storage.ErrWrongKey},
		{"a page of text, encrypted", filled(4096), encrypted, "wrong key, or not the database of a KMS", storage.ErrWrongKey},
		{"a plain database, encrypted", written(), encrypted, "wrong key, or not the database of a KMS", storage.ErrWrongKey},
		{"an encrypted database, plain", written(encrypted), none, "wrong key, or not the database of a KMS", storage.ErrWrongKey},
		{"another key", written(encrypted), both(encrypted, otherKey), "wrong key, or not the database of a KMS", storage.ErrWrongKey},
		{"another master password", written(encrypted, masterPassword("correct horse")), both(encrypted, masterPassword("battery staple")), "wrong key, or not the database of a KMS", storage.ErrWrongKey},
		{"a master password where there was none", written(encrypted), both(encrypted, masterPassword("battery staple")), "wrong key, or not the database of a KMS", storage.ErrWrongKey},
		{"the master password with another root key", written(encrypted, masterPassword("correct horse")), both(both(encrypted, masterPassword("correct horse")), otherRoot), "wrong key, or not the database of a KMS", storage.ErrWrongKey},
		{"an encrypted file that is cut off", func(t *testing.T, dir, file string) {
			written(encrypted)(t, dir, file)
			if err := os.Truncate(file, 4000); err != nil {
				t.Fatal(err)
			}
		}, encrypted, "is not a multiple of 4096 bytes", storage.ErrWrongKey},
		{"another root key", written(), both(otherKey, otherRoot), "it is bound to the root key 01", nil},
		{"the root key with another key", written(), otherKey, "its binding to the root key was not made by this KMS", storage.ErrIntegrity},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, storage.File)
			tt.prepare(t, dir, file)
			before := snapshot(t, dir)
			_, err := sqldb.Open(t.Context(), config(dir, tt.change))
			wantError(t, err, tt.want, tt.is)
			after := snapshot(t, dir)
			if _, ok := before[storage.File]; !ok {
				// The log's links are found when there is a file for it.
				delete(after, storage.File)
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("Open changed the directory (-before +after):\n%s", diff)
			}
		})
	}
}

// snapshot returns what the files of a directory are and hold, but for those
// that SQLite makes beside its own and may leave empty.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch {
		case !e.Type().IsRegular():
			all[e.Name()] = e.Type().String()
		case e.Name() == storage.File:
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			all[e.Name()] = string(data)
		case !strings.HasPrefix(e.Name(), storage.File):
			all[e.Name()] = "a file"
		}
	}
	return all
}

func TestOtherRootError(t *testing.T) {
	dir := t.TempDir()
	use(t, config(dir), func(*sqldb.DB) {})
	_, err := sqldb.Open(t.Context(), config(dir, otherRoot))
	got, ok := errors.AsType[*storage.OtherRootError](err)
	if !ok || got.Database != [32]byte{1} || got.KMS != [32]byte{2} {
		t.Errorf("Open = %v, want OtherRootError of 1 and 2", err)
	}
}

// asNobody runs f without the right to write what is not given to all.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Of this thread alone; it returns the old one in place of an error.
	if _, err := unix.SetfsuidRetUid(65534); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := unix.SetfsuidRetUid(0); err != nil {
			t.Error(err)
		}
	}()
	f()
}

func TestDirectoriesThatCannotBeWritten(t *testing.T) {
	parent := t.TempDir()
	if err := os.Chmod(filepath.Dir(parent), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(parent, "file")
	used := filepath.Join(parent, "used")
	use(t, config(used), func(*sqldb.DB) {})
	err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chmod(used, 0o555), os.Chmod(filepath.Join(used, storage.File), 0o666), os.Chmod(parent, 0o555))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(os.Chmod(parent, 0o755), os.Chmod(used, 0o755)); err != nil {
			t.Error(err)
		}
	})
	tests := []struct{ name, dir, want string }{
		{"one that cannot be made", filepath.Join(parent, "new"), "making the directory of the database: mkdir " + parent},
		{"one that is a file", file, "is not a directory"},
		{"one in which no file can be made", parent, "making the database: open " + parent},
		{"one in which the database is", used, "the directory of the database cannot be written: open " + used},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asNobody(t, func() {
				_, err := sqldb.Open(t.Context(), config(tt.dir))
				wantError(t, err, tt.want, nil)
			})
		})
	}
}

func TestPathsWithASpecialMeaningToSQLite(t *testing.T) {
	for _, name := range []string{"a?mode=memory", "b#c", "d%20e", "f&vfs=memdb", "é ü", ":memory:", "file:g"} {
		for _, change := range []func(*storage.Config){func(*storage.Config) {}, encrypted} {
			dir := filepath.Join(t.TempDir(), name)
			use(t, config(dir, change), func(db *sqldb.DB) { commit(t, db, audit.Batch{Rows: rows(0, 1)}) })
			if info, err := os.Stat(filepath.Join(dir, storage.File)); err != nil || info.Size() == 0 {
				t.Errorf("database in %q is not in its file: %v", name, err)
			}
			use(t, config(dir, change), func(db *sqldb.DB) {
				if got := readAll(t, db); len(got.Rows) != 1 {
					t.Errorf("database in %q has %d records, want 1", name, len(got.Rows))
				}
			})
		}
	}
}

func TestEncryptedFilesShowNothing(t *testing.T) {
	markers := []string{"MarkerOfABody", "MarkerOfAHead", "markerofavalue", "SQLite format 3", "kms_rules", "CREATE TABLE"}
	written := func(t *testing.T, change func(*storage.Config)) map[string]int {
		t.Helper()
		dir := t.TempDir()
		found := make(map[string]int)
		scan := func() {
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				data, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range markers {
					found[m] += bytes.Count(data, []byte(m))
				}
			}
		}
		use(t, config(dir, change), func(db *sqldb.DB) {
			for i := range uint64(50) {
				commit(t, db, audit.Batch{
					Head: []byte("MarkerOfAHead"), Rows: []audit.Row{row(i, "MarkerOfABody")},
					Edits: []registry.Edit{add(registry.App, "", fmt.Sprint("markerofavalue", i))}, Revision: i + 1,
				})
			}
			scan()
		})
		scan()
		return found
	}
	plain := written(t, func(*storage.Config) {})
	for _, m := range markers {
		if plain[m] == 0 {
			t.Errorf("a plain file does not show %q: the scan finds nothing", m)
		}
	}
	for _, change := range []func(*storage.Config){encrypted, func(c *storage.Config) { encrypted(c); masterPassword("correct horse")(c) }} {
		if found := written(t, change); found["MarkerOfABody"]+found["MarkerOfAHead"]+found["markerofavalue"]+found["SQLite format 3"]+found["kms_rules"]+found["CREATE TABLE"] != 0 {
			t.Errorf("an encrypted file shows %v, want nothing", found)
		}
	}
}

// TestFlippedBits changes one bit of each page in turn: what is read afterwards
// is an error, or what was written, or lacks something; it is never a rule that
// nobody made.
func TestFlippedBits(t *testing.T) {
	for _, change := range []func(*storage.Config){func(*storage.Config) {}, encrypted} {
		c := config(t.TempDir(), change)
		t.Run(string(c.Type), func(t *testing.T) {
			var want contents
			use(t, c, func(db *sqldb.DB) {
				var edits []registry.Edit
				for i := range 60 {
					edits = append(edits, add(registry.App, "", fmt.Sprintf("%040x", i)))
				}
				commit(t, db, audit.Batch{Rows: rows(0, 60), Edits: edits, Revision: 1})
				want = readAll(t, db)
			})
			file := filepath.Join(c.Path, storage.File)
			original, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			made := make(map[registry.Entry]bool)
			for _, e := range want.Rules {
				made[e] = true
			}
			failed, tried := 0, 0
			for at := 1777; at < len(original); at += 1499 {
				tried++
				damaged := bytes.Clone(original)
				damaged[at] ^= 0x10
				if err := os.WriteFile(file, damaged, 0o600); err != nil {
					t.Fatal(err)
				}
				if readDamaged(t, c, made) {
					failed++
				}
			}
			if tried < 10 || failed == 0 {
				t.Errorf("of %d changes %d were noticed, want some of at least 10", tried, failed)
			}
			t.Logf("of %d changes %d were noticed on reading", tried, failed)
		})
	}
}

func readDamaged(t *testing.T, c storage.Config, made map[registry.Entry]bool) (failed bool) {
	t.Helper()
	db, err := sqldb.Open(t.Context(), c)
	if err != nil {
		return true
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Logf("Close = %v", err)
		}
	}()
	got, err := tryReadAll(t, db)
	for _, e := range got.Rules {
		if !made[e] {
			t.Errorf("List gave the rule %v, which nobody made", e)
		}
	}
	return err != nil
}

func TestForeignTablesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	tamper(t, dir, "CREATE TABLE other (x TEXT)", "INSERT INTO other VALUES ('kept')")
	use(t, config(dir), func(db *sqldb.DB) {
		commit(t, db, audit.Batch{Rows: rows(0, 3)})
		commit(t, db, audit.Batch{Clear: true, Rows: rows(3, 1)})
	})
	raw := rawSQLite(t, dir)
	defer func() {
		if err := raw.Close(); err != nil {
			t.Error(err)
		}
	}()
	var got string
	if err := raw.QueryRowContext(t.Context(), "SELECT x FROM other").Scan(&got); err != nil || got != "kept" {
		t.Errorf("foreign table = %q, %v, want kept", got, err)
	}
}

func TestOpenRefusesWhatWasTamperedWith(t *testing.T) {
	tests := []struct {
		name      string
		statement string
		want      string
		is        error
	}{
		{"a newer schema", "INSERT INTO kms_schema (version_id, is_applied) VALUES (99, 1)", "the database has schema 99, this program knows no newer than 4", nil},
		{"a binding that was removed", "DELETE FROM kms_meta", "its binding to a root key was removed", storage.ErrIntegrity},
		{"a table of bindings that was removed", "DROP TABLE kms_meta", "its binding to a root key was removed", storage.ErrIntegrity},
		{"a binding that is too short", "UPDATE kms_meta SET value = x'00'", "its binding to a root key is malformed", storage.ErrIntegrity},
		{"a binding that was written by another", "UPDATE kms_meta SET value = CAST(substr(value, 1, 32) || zeroblob(32) AS BLOB)", "its binding to the root key was not made by this KMS", storage.ErrIntegrity},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			use(t, config(dir), func(db *sqldb.DB) { commit(t, db, audit.Batch{Rows: rows(0, 3)}) })
			tamper(t, dir, tt.statement)
			_, err := sqldb.Open(t.Context(), config(dir))
			wantError(t, err, tt.want, tt.is)
		})
	}
}

func TestMigrationsThatWereInterrupted(t *testing.T) {
	for _, statement := range []string{
		"DELETE FROM kms_schema", "DELETE FROM kms_schema WHERE version_id > 2", "DROP TABLE kms_schema",
	} {
		dir := t.TempDir()
		use(t, config(dir), func(db *sqldb.DB) { commit(t, db, audit.Batch{Rows: rows(0, 3)}) })
		tamper(t, dir, statement)
		use(t, config(dir), func(db *sqldb.DB) {
			if diff := cmp.Diff(contents{Head: []byte("head"), Rows: rows(0, 3)}, readAll(t, db)); diff != "" {
				t.Errorf("contents after %q differ (-want +got):\n%s", statement, diff)
			}
		})
	}
}

func TestRemovedHead(t *testing.T) {
	dir := t.TempDir()
	db := open(t, config(dir))
	commit(t, db, audit.Batch{Rows: rows(0, 3)})
	tamper(t, dir, "DELETE FROM kms_head")
	_, err := db.Head(t.Context())
	wantError(t, err, "the head of the audit log was removed", storage.ErrIntegrity)
	_, _, err = db.Match(t.Context(), []registry.Rule{rule(registry.App, "", "x")})
	wantError(t, err, "the head of the audit log was removed", storage.ErrIntegrity)
	wantError(t, db.Commit(t.Context(), write(audit.Batch{})), "the head of the audit log was removed", storage.ErrIntegrity)
}

func TestFilesThatGoAwayWhileTheyAreOpen(t *testing.T) {
	const moved, log = "its file was removed or replaced while it was open", "its write-ahead log was removed while it was open"
	remove := func(names ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, name := range names {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	tests := []struct {
		name   string
		change func(t *testing.T, dir string)
		want   string
	}{
		{"removed", remove("kms.db", "kms.db-wal", "kms.db-shm"), moved},
		{"removed without its log", remove("kms.db"), moved},
		{"its log removed", remove("kms.db-wal"), log},
		{"its directory renamed", func(t *testing.T, dir string) {
			if err := os.Rename(dir, dir+"-old"); err != nil {
				t.Fatal(err)
			}
		}, moved},
		{"cut off", func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, storage.File), 0); err != nil {
				t.Fatal(err)
			}
		}, "its file was cut off while it was open"},
		{"replaced by a copy of itself", func(t *testing.T, dir string) {
			file := filepath.Join(dir, storage.File)
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(file+".new", content, 0o600), os.Rename(file+".new", file)); err != nil {
				t.Fatal(err)
			}
		}, moved},
	}
	for _, change := range []func(*storage.Config){func(*storage.Config) {}, encrypted} {
		for _, tt := range tests {
			c := config(filepath.Join(t.TempDir(), "db"), change)
			t.Run(tt.name+", "+string(c.Type), func(t *testing.T) {
				db := open(t, c)
				commit(t, db, audit.Batch{Rows: rows(0, 3)})
				tt.change(t, c.Path)
				_, err := db.Head(t.Context())
				wantError(t, err, tt.want, storage.ErrIntegrity)
				wantError(t, db.Commit(t.Context(), write(audit.Batch{Rows: rows(3, 1)})), tt.want, storage.ErrIntegrity)
			})
		}
	}
}

func TestManyOpenAtOnce(t *testing.T) {
	for _, change := range []func(*storage.Config){func(*storage.Config) {}, encrypted} {
		dir := filepath.Join(t.TempDir(), "new")
		done := make(chan error)
		const n = 8
		for range n {
			go func() {
				db, err := sqldb.Open(context.Background(), config(dir, change))
				if err == nil {
					err = db.Close()
				}
				done <- err
			}()
		}
		for range n {
			if err := <-done; err != nil {
				t.Errorf("Open = %v, want nil", err)
			}
		}
	}
}

func TestAnotherProcessThatDoesNotFinishOpening(t *testing.T) {
	dir := t.TempDir()
	use(t, config(dir), func(*sqldb.DB) {})
	f, err := os.Open(filepath.Join(dir, storage.File))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	_, err = sqldb.Open(t.Context(), config(dir, func(c *storage.Config) { c.Timeout = 20 * time.Millisecond }))
	wantError(t, err, "another process is opening the database", storage.ErrUnavailable)
}

func TestAnotherProcessThatHoldsTheDatabase(t *testing.T) {
	dir := t.TempDir()
	db := open(t, config(dir, func(c *storage.Config) { c.Timeout = time.Second }))
	commit(t, db, audit.Batch{Rows: rows(0, 1)})
	raw := rawSQLite(t, dir)
	conn, err := raw.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	wantError(t, db.Commit(t.Context(), write(audit.Batch{Rows: rows(1, 1)})), "", storage.ErrUnavailable)
	if waited := time.Since(begin); waited > 4*time.Second { // it would be five of another test, ten by default
		t.Errorf("Commit gave up after %v, want about a second", waited)
	}
	// Readers do not wait for writers.
	if got := readAll(t, db); len(got.Rows) != 1 {
		t.Errorf("Rows = %d, want 1", len(got.Rows))
	}
	if err := errors.Join(conn.Close(), raw.Close()); err != nil {
		t.Fatal(err)
	}
	commit(t, db, audit.Batch{Rows: rows(1, 1)})
	if diff := cmp.Diff(rows(0, 2), readAll(t, db).Rows); diff != "" {
		t.Errorf("rows differ (-want +got):\n%s", diff)
	}
}
