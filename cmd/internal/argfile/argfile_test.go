package argfile_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"teekms/cmd/internal/argfile"
)

func pipe(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadTakesFilesAndPipes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := pipe(t)
	go os.WriteFile(fifo, []byte("12345"), 0)
	for _, path := range []string{file, fifo} {
		if text, err := argfile.Read(t.Context(), path, 5); string(text) != "12345" || err != nil {
			t.Errorf("Read(%s) = %q, %v, want what is in it", path, text, err)
		}
	}
	if _, err := argfile.Read(t.Context(), file, 4); err == nil || !strings.Contains(err.Error(), file+" has more than 4 bytes") {
		t.Errorf("Read() of 5 bytes = %v, want a refusal of more than 4", err)
	}
	if _, err := argfile.Read(t.Context(), file+".no", 4); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Read() of no file = %v, want %v", err, os.ErrNotExist)
	}
}

// Nobody ever writes to the pipe.
func TestReadEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	fifo := pipe(t)
	failed := make(chan error, 1)
	go func() {
		_, err := argfile.Read(ctx, fifo, 5)
		failed <- err
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("Read() = %v, want that of the context", err)
	}
	// Who was left behind goes on to its end.
	if err := os.WriteFile(fifo, nil, 0); err != nil {
		t.Error(err)
	}
}
