// Package simtd is a trust domain in software: real TDX quotes, signed under a
// PKI of its own that is kept in a directory, and the collateral that goes with
// them. It lets machines without TDX run the whole product through the one
// verifier; nothing is skipped for it, only another root is trusted.
//
// It protects nothing: whoever reads the directory can sign any quote under its
// root. A verifier that names DIR/root-ca.pem as its trust root believes every
// such quote (docs/evidence.md#simulator).
package simtd

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
)

// RootFile is the name of the trust root in the directory, PEM.
const RootFile = "root-ca.pem"

// Config says which software trust domain to open, and how it looks when it
// has to be made.
type Config struct {
	// Dir is the directory. Required; made when missing.
	Dir string
	// Measurements override those the directory has, field by field; they are
	// kept in it. The zero value changes nothing.
	Measurements Measurements
	// Ephemeral opens a directory that must be there already, and keeps
	// nothing in it: Measurements hold for this TD alone. It is another machine
	// under the same root.
	Ephemeral bool
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Shape is the form of the quotes that [TD.Attest] makes; zero is version 4.
	Shape Shape
	// EditCertificate, when not nil, may change a certificate of the PKI before
	// it is signed, for tests of what a verifier refuses. It is called only
	// while the directory is made, once for each of the Certificate
	// constants.
	EditCertificate func(which string, template *x509.Certificate)
}

// TD is a running software trust domain. Its methods may be called from several
// goroutines. What [TD.Extend] adds lasts as long as the TD, as in hardware.
type TD struct {
	dir   string
	now   func() time.Time
	shape Shape
	pki   *pki
	m     Measurements
	qe    signedQE // the part of a quote that is the same in all

	mu      sync.Mutex // guards what follows
	log     eventlog.Log
	logText []byte
	rtmr    [4]attest.Measurement

	endorsements
}

var _ attest.Attester = (*TD)(nil)

// Open opens the software trust domain in cfg.Dir and makes it first when the
// directory has none: completely or not at all, also when two processes open it
// at once. It refreshes the collateral files when they are an hour old, and
// does without where the directory cannot be written.
func Open(cfg Config) (*TD, error) {
	if cfg.Dir == "" {
		return nil, errors.New("opening software trust domain: no directory given")
	}
	td, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("opening software trust domain %q: %w", cfg.Dir, err)
	}
	return td, nil
}

func open(cfg Config) (*TD, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the default of an injected clock
	}
	if err := cfg.Shape.check(); err != nil {
		return nil, err
	}
	st, err := loadOrMake(cfg)
	if err != nil {
		return nil, err
	}
	td := &TD{dir: cfg.Dir, now: cfg.Now, shape: cfg.Shape, pki: st.pki, m: st.set.complete()}
	if td.qe, err = td.signQE(nil, nil); err != nil {
		return nil, err
	}
	if err := td.boot(); err != nil {
		return nil, err
	}
	if err := td.refreshFiles(); err != nil {
		return nil, err
	}
	return td, nil
}

// boot extends what firmware and set-up extend before an application runs.
func (t *TD) boot() error {
	for _, e := range t.m.events() {
		if err := t.ExtendEvent(e); err != nil {
			return err
		}
	}
	return nil
}

// Extend adds a runtime event to RTMR3, as an application would.
func (t *TD) Extend(name string, payload []byte) error {
	return t.ExtendEvent(eventlog.Event{IMR: eventlog.RuntimeIMR, Type: eventlog.RuntimeEventType, Name: name, Payload: payload})
}

// ExtendEvent adds an event to the register it names. The digest of a runtime
// event is computed when it has none.
func (t *TD) ExtendEvent(e eventlog.Event) error {
	if err := e.Check(); err != nil {
		return fmt.Errorf("extending RTMR: %w", err)
	}
	d, err := e.MeasuredDigest()
	if err != nil {
		return fmt.Errorf("extending RTMR: %w", err)
	}
	e.Digest = d[:]
	t.mu.Lock()
	defer t.mu.Unlock()
	log := append(t.log[:len(t.log):len(t.log)], e)
	text, err := log.Marshal()
	if err != nil {
		return fmt.Errorf("extending RTMR: %w", err)
	}
	t.log, t.logText = log, text
	t.rtmr[e.IMR] = eventlog.Extend(t.rtmr[e.IMR], d)
	return nil
}

// Attest makes Evidence over rd: a quote in the configured shape, the whole
// event log and the description of the machine.
func (t *TD) Attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("quoting in software trust domain: %w", err)
	}
	// One lock over both: an event between them would part quote and log.
	t.mu.Lock()
	rtmr, log := t.rtmr, t.logText
	t.mu.Unlock()
	quote, err := t.quote(rd.Bytes(), rtmr, t.shape)
	if err != nil {
		return nil, err
	}
	return &attest.Evidence{Quote: quote, EventLog: append([]byte(nil), log...), VMConfig: t.VMConfig()}, nil
}

// VMConfig returns the JSON text that Evidence carries beside the quote.
func (t *TD) VMConfig() string {
	text, err := json.Marshal(struct {
		SpecVersion int    `json:"spec_version"`
		OSImageHash string `json:"os_image_hash"`
		CPUCount    int    `json:"cpu_count"`
		MemorySize  int64  `json:"memory_size"`
		Image       string `json:"image"`
	}{1, fmt.Sprintf("%x", t.m.OSImageHash), 2, 2 << 30, t.m.Image})
	if err != nil {
		return "{}" // strings and numbers always marshal
	}
	return string(text)
}

// EventLog returns a copy of the events so far.
func (t *TD) EventLog() eventlog.Log {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append(eventlog.Log(nil), t.log...)
}

// RTMR returns the four registers as they are now.
func (t *TD) RTMR() [4]attest.Measurement {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rtmr
}

// Measurements returns what the trust domain claims to be.
func (t *TD) Measurements() Measurements { return t.m.clone() }

// RootPath returns the path of the trust root's PEM file.
func (t *TD) RootPath() string { return filepath.Join(t.dir, RootFile) }

// Root returns the trust root.
func (t *TD) Root() *x509.Certificate { return t.pki.root.cert }

// PCK returns the certificate of the platform, which holds PPID and FMSPC.
func (t *TD) PCK() *x509.Certificate { return t.pki.pck.cert }

// AttestationKey returns the public half of the key that signs quotes.
func (t *TD) AttestationKey() *ecdsa.PublicKey { return &t.pki.attestation.PublicKey }
