package auditcheck

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"teekms/internal/audit"
)

// The first line of an export, and what a proof calls itself.
const (
	exportFormat = "teekms audit export v1"
	proofFormat  = "teekms audit proof v1"
)

// maxLine bounds a line of an export: a record in base64, or a checkpoint.
const maxLine = 2 << 20

// line is a line of an export: the first has the format, the last the head, and
// those between have records.
type line struct {
	Format       string  `json:"format,omitempty"`
	Seq          *uint64 `json:"seq,omitempty"`
	Body         []byte  `json:"body,omitempty"`
	Checkpoint   string  `json:"checkpoint,omitempty"`
	Key          string  `json:"key,omitempty"`
	KeySignature []byte  `json:"key_signature,omitempty"`
}

// last says whether it is the last line.
func (l *line) last() bool { return l.Checkpoint != "" }

// Export writes a log to w as it is verified: a file that can be verified
// without the KMS. Where the log does not verify, the file has no last line.
func Export(ctx context.Context, w io.Writer, s Source, o Options) (*Report, error) {
	buffered := bufio.NewWriter(w)
	enc := json.NewEncoder(buffered)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(line{Format: exportFormat}); err != nil {
		return nil, err
	}
	o.Each = func(body []byte, r *audit.Record) error { return enc.Encode(line{Seq: &r.Seq, Body: body}) }
	r, err := Verify(ctx, s, o)
	if err != nil {
		return nil, errors.Join(err, buffered.Flush())
	}
	if err := enc.Encode(line{Checkpoint: r.Head.Checkpoint, Key: r.Head.Key, KeySignature: r.Head.KeySignature}); err != nil {
		return nil, err
	}
	return r, buffered.Flush()
}

// File is a log in an export.
type File struct {
	open   func() (io.ReadCloser, error)
	reader io.ReadCloser
	lines  *bufio.Scanner
	next   uint64
	done   bool
}

// OpenFile reads an export. It is read twice, for its last line first.
func OpenFile(open func() (io.ReadCloser, error)) *File { return &File{open: open} }

// Close closes the file.
func (f *File) Close() error {
	if f.reader == nil {
		return nil
	}
	return f.reader.Close()
}

func (f *File) restart() error {
	if err := f.Close(); err != nil {
		return err
	}
	r, err := f.open()
	if err != nil {
		return err
	}
	f.reader, f.next, f.done = r, 0, false
	f.lines = bufio.NewScanner(r)
	f.lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	first, err := f.line()
	if err != nil {
		return err
	}
	if first == nil || first.Format != exportFormat {
		return findingf(Malformed, "the file is no export of an audit log")
	}
	return nil
}

// line reads one line, nil at the end.
func (f *File) line() (*line, error) {
	if !f.lines.Scan() {
		if errors.Is(f.lines.Err(), bufio.ErrTooLong) {
			return nil, findingf(Malformed, "a line of the file is too long")
		}
		return nil, f.lines.Err()
	}
	var l line
	d := json.NewDecoder(bytes.NewReader(f.lines.Bytes()))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return nil, findingf(Malformed, "a line of the file is no JSON of an export")
	}
	return &l, nil
}

// Head implements [Source]: the last line of the file.
func (f *File) Head(ctx context.Context) (Head, error) {
	if err := f.restart(); err != nil {
		return Head{}, err
	}
	for ctx.Err() == nil {
		l, err := f.line()
		switch {
		case err != nil:
			return Head{}, err
		case l == nil:
			return Head{}, findingf(Truncated, "the file ends without a checkpoint")
		case !l.last():
			continue
		}
		if more, err := f.line(); err != nil || more != nil {
			return Head{}, errors.Join(findingf(Malformed, "there is more after the checkpoint"), err)
		}
		return Head{Checkpoint: l.Checkpoint, Key: l.Key, KeySignature: l.KeySignature}, f.restart()
	}
	return Head{}, ctx.Err()
}

// Records implements [Source]: a record for each line.
func (f *File) Records(_ context.Context, from uint64) ([][]byte, error) {
	if from != f.next {
		return nil, fmt.Errorf("reading record %d of a file where it is at %d", from, f.next)
	}
	l, err := f.line()
	if err != nil || l == nil || l.last() {
		return nil, err
	}
	if l.Seq == nil || *l.Seq != f.next {
		return nil, findingf(Reordered, "in the file, record %d is not where it belongs", f.next)
	}
	f.next++
	return [][]byte{l.Body}, nil
}
