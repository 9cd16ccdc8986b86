// Package tpm keeps a key in a TPM 2.0, which gives it back only in the state of
// the machine it was sealed in: [New], [Source.Make], [Source.Find].
//
// The key is a sealed data object under the storage root key (SRK), an ECC key
// that the TPM derives from its own seed each time by the TCG's template; its
// only authorization is PolicyPCR. It cannot leave that TPM, and no number of
// attempts locks it. What passes between us and the TPM is encrypted in sessions
// that are salted to the SRK, so that who listens on the bus learns nothing.
// Whoever can talk to the TPM of a machine in the sealed state can unseal: a
// policy over PCRs is about the state, not about who asks.
package tpm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2/transport"

	"teekms/internal/keys"
	"teekms/internal/keys/seal/tpm/device"
)

const (
	// KeySize is the size in bytes of the keys made here.
	KeySize = 32
	// MaxPCR is the highest PCR that every PC has.
	MaxPCR = 23

	defaultTimeout = 30 * time.Second
)

// Config says which TPM and which state of it.
type Config struct {
	// Device is the path of the TPM: a character device such as /dev/tpmrm0, or
	// a unix socket such as swtpm's. Required without Open.
	Device string
	// PCRs are the registers of the SHA-256 bank that Make seals to, each 0 to
	// 23, in any order, none twice. Required. Find takes those it sealed to.
	// Any program can set 16 and 23 back: alone they guard nothing, and neither
	// do registers that nothing is measured into, see Unmeasured.
	PCRs []int
	// Timeout bounds each Make and each Find; 30 seconds when zero.
	Timeout time.Duration
	// Open opens a TPM in place of Device, for one that runs in the process. It
	// is taken for one without a resource manager.
	Open func(context.Context) (transport.TPMCloser, error)
}

// Source makes keys and finds them again. It holds nothing open, and its
// methods may be called from several goroutines.
type Source struct {
	open    func(context.Context) (conn, error)
	pcrs    selection
	timeout time.Duration
}

// New makes a Source. It does not look whether a TPM is there.
func New(cfg Config) (*Source, error) {
	pcrs, err := newSelection(cfg.PCRs)
	if err != nil {
		return nil, err
	}
	s := &Source{pcrs: pcrs, timeout: cfg.Timeout}
	if s.timeout <= 0 {
		s.timeout = defaultTimeout
	}
	switch {
	case cfg.Open != nil:
		s.open = func(ctx context.Context) (conn, error) {
			t, err := cfg.Open(ctx)
			return inProcess{t}, err
		}
	case cfg.Device != "":
		s.open = func(ctx context.Context) (conn, error) { return device.Open(ctx, cfg.Device) }
	default:
		return nil, errors.New("no TPM is named: want a device such as /dev/tpmrm0, or a socket")
	}
	return s, nil
}

// conn is an open TPM.
type conn interface {
	transport.TPMCloser
	// Release lets the context's end not hinder the flushing of what was made.
	Release()
	// Managed reports whether a resource manager keeps programs apart.
	Managed() bool
}

// inProcess is a TPM that was given in place of a device.
type inProcess struct{ transport.TPMCloser }

func (inProcess) Release()      {}
func (inProcess) Managed() bool { return false }

// Make makes a random key of 32 bytes and seals it to the state that the
// configured PCRs have now. args are what Find needs, 5 words of printable ASCII
// that hold no secret:
//
//	sha256:7+11+14   the PCRs
//	VALUES           8 bytes of the value of each, to say later which changed
//	SRK              the name of the SRK, 34 bytes
//	PUBLIC           TPMT_PUBLIC of the object, 78 bytes
//	PRIVATE          what TPM2B_PRIVATE holds, encrypted by the TPM
//
// The last four are base64 without padding. Which TPM this is nobody vouches for:
// one that an attacker put on the bus before the first sealing has the key.
func (s *Source) Make(ctx context.Context) (key keys.Secret, args []string, err error) {
	b := make([]byte, KeySize)
	if _, err := rand.Read(b); err != nil {
		return keys.Secret{}, nil, fmt.Errorf("making a key: %w", err)
	}
	defer clear(b)
	var made object
	err = s.with(ctx, func(t *tpm) error {
		made, err = t.seal(b, s.pcrs)
		return err
	})
	if err != nil {
		return keys.Secret{}, nil, err
	}
	return keys.NewSecret(b), made.args(), nil
}

// Find returns the key that Make made args for. The error says in words why the
// TPM does not give it, and wraps the code of the TPM (tpm2.TPMRC).
func (s *Source) Find(ctx context.Context, args []string) (keys.Secret, error) {
	o, err := parseArgs(args)
	if err != nil {
		return keys.Secret{}, fmt.Errorf("reading what was sealed to a TPM: %w", err)
	}
	var key keys.Secret
	err = s.with(ctx, func(t *tpm) error {
		key, err = t.unseal(o)
		return err
	})
	return key, err
}

// Describe puts the args of a sealing in words, opening nothing: "PCRs 7, 11, 14
// of SHA-256".
func (s *Source) Describe(args []string) string { return Describe(args) }

// Describe is [Source.Describe] for those who have no Source.
func Describe(args []string) string {
	o, err := parseArgs(args)
	if err != nil {
		return "PCRs that cannot be read (" + err.Error() + ")"
	}
	return o.pcrs.String()
}

// with runs f on the opened TPM. On a TPM without a resource manager programs
// that were killed leave objects and sessions behind, and three of them are all
// the room there is: then what is there is flushed, and f runs once more. A
// socket has one user at a time, so what is there belongs to nobody who is.
func (s *Source) with(ctx context.Context, f func(*tpm) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	managed, err := s.once(ctx, f)
	if noRoom(err) && !managed {
		if _, err := s.once(ctx, (*tpm).evict); err != nil {
			return fmt.Errorf("making room in the TPM: %w", explain(err))
		}
		_, err = s.once(ctx, f)
	}
	if err != nil && ctx.Err() == nil {
		err = explain(err)
	}
	return err
}

// once opens the TPM for one run of f, and reports whether a resource manager
// keeps its users apart.
func (s *Source) once(ctx context.Context, f func(*tpm) error) (managed bool, err error) {
	c, err := s.open(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = c.Close() }() // nothing is written that could be lost
	t := &tpm{conn: c}
	defer t.release()
	return c.Managed(), f(t)
}

// selection is a sorted set of PCRs of the SHA-256 bank.
type selection []uint

func newSelection(pcrs []int) (selection, error) {
	if len(pcrs) == 0 {
		return nil, errors.New("no PCRs: without one, the key would open in any state")
	}
	s := make(selection, 0, len(pcrs))
	for _, p := range pcrs {
		if p < 0 || p > MaxPCR {
			return nil, fmt.Errorf("PCR %d: want 0 to %d", p, MaxPCR)
		}
		s = append(s, uint(p))
	}
	slices.Sort(s)
	for i := range s[1:] {
		if s[i] == s[i+1] {
			return nil, fmt.Errorf("PCR %d: named twice", s[i])
		}
	}
	return s, nil
}
