// Package privatefile tells what the private files of a key directory are sealed
// to, without opening them: nothing secret is read, and nothing has to be
// configured.
package privatefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"teekms/internal/keys/seal"
	"teekms/internal/keys/seal/tpm"
)

// Names are the names of the private files.
func Names() []string { return []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"} }

// State is what a file is, or all of them are. They are part of the JSON schema.
type State string

// The states. Mixed is of all files alone: they are not the same.
const (
	Sealed      State = "sealed"
	Plain       State = "plain"
	Missing     State = "missing"
	NotReadable State = "not readable"
	Damaged     State = "damaged"
	Mixed       State = "mixed"
)

// Seal is one seal of a file.
type Seal struct {
	Kind seal.Kind `json:"kind"`
	// Detail is what it is bound to, in words.
	Detail string `json:"detail"`
	// Recipients are those of an escrow.
	Recipients []string `json:"recipients,omitempty"`
}

// Seals puts the seals in a header in words.
func Seals(h *seal.Header) []Seal {
	out := []Seal{}
	for _, d := range h.Seals {
		s := Seal{Kind: d.Kind, Detail: d.Detail}
		switch d.Kind {
		case seal.KindTPM:
			if s.Detail == "" {
				s.Detail = tpm.Describe(d.Args)
			}
		case seal.KindEscrow:
			s.Recipients = h.Recipients
		case seal.KindPassphrase, seal.KindGuestAgent:
		}
		out = append(out, s)
	}
	return out
}

// List is a line about seals: "passphrase (scrypt, work factor 18), escrow (2
// recipients)".
func List(seals []Seal) string {
	parts := make([]string, len(seals))
	for i, s := range seals {
		parts[i] = fmt.Sprintf("%s (%s)", s.Kind, s.Detail)
	}
	return strings.Join(parts, ", ")
}

// Report is what the private files of a directory are. It is what they say of
// themselves: whoever can write them can write that too.
type Report struct {
	State State `json:"state"`
	// Made is when they were sealed, nil unless they are.
	Made *time.Time `json:"made"`
	// Seals are what they are sealed to, empty unless they are.
	Seals []Seal `json:"seals"`
	// Files are all of them.
	Files []File `json:"files"`
}

// File is one private file.
type File struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// Error says why it is damaged or not readable.
	Error string `json:"error"`

	header *seal.Header
}

// Look looks at the private files of a directory. Files that it may not read are
// no error: they are for the KMS alone.
func Look(dir string) *Report {
	r := &Report{Seals: []Seal{}}
	var first *seal.Header
	for i, name := range Names() {
		f := look(dir, name)
		if f.header != nil && first != nil && !sameSealing(first, f.header) {
			f.State, f.Error = Damaged, "sealed otherwise than the files before it"
		}
		if first == nil {
			first = f.header
		}
		r.Files = append(r.Files, f)
		if i == 0 {
			r.State = f.State
		} else if f.State != r.State {
			r.State = Mixed
		}
	}
	if r.State == Sealed {
		r.Made, r.Seals = &first.Made, Seals(first)
	}
	return r
}

func sameSealing(a, b *seal.Header) bool {
	return a.Set == b.Set && a.Made.Equal(b.Made) && reflect.DeepEqual(Seals(a), Seals(b))
}

// maxHeader is how much of a sealed file is read, in bytes: the largest header.
const maxHeader = 64 << 10

const (
	// intro is how much tells a sealed file from a plain one, in bytes. Of a plain
	// one no more is read: in PEM that is nothing secret.
	intro = len("age-encryption.org/v1\n")
	// minSealed is less than any sealed file has, in bytes, and more than a raw
	// key, of which every byte is secret.
	minSealed = 128
)

var errEmpty = errors.New("it is empty")

func look(dir, name string) File {
	f := File{Name: name}
	data, err := beginning(filepath.Join(dir, name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.State = Missing
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			f.State, f.Error = NotReadable, "it is a link that leads nowhere"
		}
	case errors.Is(err, errEmpty):
		f.State, f.Error = Damaged, err.Error()
	case err != nil:
		f.State, f.Error = NotReadable, err.Error()
	case !seal.Sealed(data):
		f.State = Plain
	default:
		f.State = Sealed
		if f.header, err = seal.Inspect(name, data); err != nil {
			f.State, f.Error = Damaged, err.Error()
		}
	}
	return f
}

// beginning reads the beginning of a file: its header where it is sealed, what
// tells that it is not where it is plain.
func beginning(path string) ([]byte, error) {
	// Not blocking: a named pipe in the place of a file must not hang us.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case info.Size() == 0:
		return nil, errEmpty
	case info.Size() < minSealed:
		return nil, nil
	}
	head := make([]byte, intro)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	if head = head[:n]; !seal.Sealed(head) {
		return head, nil
	}
	rest, err := io.ReadAll(io.LimitReader(f, int64(maxHeader+1-intro)))
	return append(head, rest...), err
}

// String is a line about the private files.
func (r *Report) String() string {
	switch r.State {
	case Sealed:
		return fmt.Sprintf("sealed to %s at %s, as they say themselves", List(r.Seals), r.Made.Format(time.RFC3339))
	case Plain:
		return "plain, not sealed"
	case Missing:
		return "none in this directory"
	case NotReadable:
		return "not readable for this user"
	case Damaged, Mixed:
	}
	parts := make([]string, len(r.Files))
	for i, f := range r.Files {
		parts[i] = fmt.Sprintf("%s %s", f.Name, f.State)
		if f.State == Damaged {
			parts[i] += " (" + f.Error + ")"
		}
	}
	return strings.Join(parts, ", ")
}
