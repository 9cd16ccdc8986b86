package storagetest

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"teekms/internal/audit"
	"teekms/internal/keys"
	"teekms/internal/registry"
	"teekms/internal/storage"
)

// clientVariable makes a run of the test binary a client process.
const clientVariable = "TEST_STORAGE_CLIENT"

// assignment is what a client process reads first from its standard input.
type assignment struct {
	Type           storage.Type
	Path           string
	URL            string
	MasterPassword string
	Label          string
	// Run is in the ids of its records.
	Run uint64
}

func (a assignment) config() storage.Config {
	c := Backend{Type: a.Type}.config()
	c.Path, c.Label = a.Path, a.Label
	if a.URL != "" {
		c.URL = keys.NewSecret([]byte(a.URL))
	}
	if a.MasterPassword != "" {
		c.MasterPassword = keys.NewSecret([]byte(a.MasterPassword))
	}
	return c
}

// Client is for TestMain: in a process that [Kill] started it writes to the
// database until it is killed, and returns an exit code and true; elsewhere
// false.
func Client(open Open) (code int, ok bool) {
	if os.Getenv(clientVariable) == "" {
		return 0, false
	}
	if err := client(open, os.Stdin, os.Stdout); err != nil {
		// Who reads it may be gone.
		_, _ = fmt.Fprintln(os.Stdout, "error:", err)
		return 1, true
	}
	return 0, true
}

// client appends batch after batch and writes the number of each that was
// acknowledged, one a line. It ends when its input does: then nobody is there any
// more to kill it.
func client(open Open, in io.Reader, out io.Writer) error {
	input := bufio.NewReader(in)
	line, err := input.ReadBytes('\n')
	if err != nil {
		return err
	}
	var a assignment
	if err := json.Unmarshal(line, &a); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, input)
	}()
	db, err := open(ctx, a.config())
	for errors.Is(err, storage.ErrUnavailable) && ctx.Err() == nil {
		db, err = open(ctx, a.config())
	}
	if err != nil {
		return fmt.Errorf("opening: %w", err)
	}
	defer func() { _ = db.Close() }()
	for n := uint32(0); ; n++ {
		records, edit := numbered(a.Run, n)
		if err := settle(ctx, db, records, edit); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, n); err != nil {
			return err
		}
	}
}

// numbered makes batch n of a run: one to four records, and a rule.
func numbered(run uint64, n uint32) ([]record, registry.Edit) {
	records := make([]record, 1+n%4)
	for i := range records {
		id := binary.BigEndian.AppendUint64(nil, run)
		id = binary.BigEndian.AppendUint32(id, n)
		id = append(id, byte(i), byte(len(records)), 0, 0)
		records[i].id = [audit.IDSize]byte(id)
		for range 20 {
			records[i].body = append(records[i].body, id...)
		}
	}
	return records, registry.Edit{Op: registry.Add, Rule: rule(registry.App, batchName(run, n))}
}

func batchName(run uint64, n uint32) string {
	return hex.EncodeToString(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, run), n))
}
