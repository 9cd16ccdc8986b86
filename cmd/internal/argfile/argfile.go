// Package argfile reads what an operator names on the command line: files, and
// pipes, as shells write <(command). A pipe that nobody writes to is waited for no
// longer than the context lasts.
package argfile

import (
	"context"
	"fmt"
	"io"
	"os"
)

// Read returns what is in the file or pipe at path, at most limit bytes.
func Read(ctx context.Context, path string, limit int64) ([]byte, error) {
	return Within(ctx, func() ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close() //nolint:errcheck // nothing was written
		return All(f, path, limit)
	})
}

// All reads r, which is called name, to its end: at most limit bytes.
func All(r io.Reader, name string, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(text)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return text, err
}

// Within returns what read returns, or an error when ctx ends first. Nothing
// interrupts the opening of a pipe, nor reading standard input: read is left
// behind then. It must do no more than read, as the process is about to end.
func Within[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var zero T
	done := make(chan result, 1)
	go func() {
		v, err := read()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return zero, interrupted{ctx.Err()}
	}
}

// interrupted is the error of a context, as people are told of it.
type interrupted struct{ error }

func (interrupted) Error() string { return "interrupted" }

func (i interrupted) Unwrap() error { return i.error }
