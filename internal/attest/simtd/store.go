package simtd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"teekms/internal/durable"
)

// The directory:
//
//	root-ca.pem             the trust root, 0644
//	collateral/             what a PCS would answer, 0644
//	td/                     0700, renamed into place when it is complete
//	  NAME.key  NAME.pem    keys (PKCS#8) and certificates of the PKI, 0600
//	  measurements.json     what the trust domain claims to be, 0600
const (
	stateDir         = "td"
	stagePrefix      = ".td-"
	measurementsFile = "measurements.json"
	attestationKey   = "attestation"
	maxStateFile     = 1 << 20
)

type state struct {
	pki          *pki
	measurements Measurements
}

// loadOrMake opens td/ or makes it, and sees to the files that follow from it.
func loadOrMake(cfg Config) (*state, error) {
	if _, err := durable.MkdirAll(durable.OS{}, cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making directory: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(cfg.Dir, stateDir)); errors.Is(err, fs.ErrNotExist) {
		if err := locked(cfg.Dir, func() error { return makeState(cfg) }); err != nil {
			return nil, err
		}
	}
	st, err := loadState(filepath.Join(cfg.Dir, stateDir))
	if err != nil {
		return nil, err
	}
	if err := st.override(cfg); err != nil {
		return nil, err
	}
	return st, st.publishRoot(cfg.Dir)
}

// readFile reads a file of bounded size.
func readFile(path string) ([]byte, error) {
	b, err := durable.OS{}.ReadFile(path, maxStateFile)
	if err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	return b, nil
}

// replaceFile puts data at name in dir, which it locks.
func replaceFile(dir, name string, data []byte, mode fs.FileMode) error {
	return locked(dir, func() error {
		if err := durable.WriteFile(durable.OS{}, filepath.Join(dir, name), data, mode); err != nil {
			return fmt.Errorf("replacing file: %w", err)
		}
		return nil
	})
}

// lockTimeout is ample: a directory is made in milliseconds.
const lockTimeout = 30 * time.Second

// locked runs f while no other process changes the directory.
func locked(dir string, f func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	unlock, err := durable.OS{}.Lock(ctx, dir)
	if err != nil {
		return fmt.Errorf("locking: %w", err)
	}
	defer unlock()
	return f()
}

// makeState makes td/ in a stage and renames it. Stages of a process that died
// are removed: under the lock nobody works on one.
func makeState(cfg Config) error {
	final := filepath.Join(cfg.Dir, stateDir)
	if _, err := os.Lstat(final); err == nil {
		return nil // another process was first
	}
	old, err := filepath.Glob(filepath.Join(cfg.Dir, stagePrefix+"*"))
	if err != nil {
		return fmt.Errorf("looking for old stages: %w", err)
	}
	for _, o := range old {
		if err := os.RemoveAll(o); err != nil {
			return fmt.Errorf("removing old stage: %w", err)
		}
	}
	st, err := newState(cfg)
	if err != nil {
		return err
	}
	stage, err := os.MkdirTemp(cfg.Dir, stagePrefix)
	if err != nil {
		return fmt.Errorf("staging: %w", err)
	}
	if err := st.save(stage); err != nil {
		return errors.Join(err, os.RemoveAll(stage))
	}
	if err := os.Rename(stage, final); err != nil {
		return errors.Join(fmt.Errorf("committing: %w", err), os.RemoveAll(stage))
	}
	return durable.OS{}.SyncDir(cfg.Dir)
}

// newState draws keys, PPID and instance id.
func newState(cfg Config) (*state, error) {
	if err := cfg.Measurements.check(); err != nil {
		return nil, err
	}
	m := cfg.Measurements.complete()
	if len(m.InstanceID) == 0 {
		m.InstanceID = make([]byte, 20)
		_, _ = rand.Read(m.InstanceID) // never fails
	}
	p := platform{fmspc: m.FMSPC}
	_, _ = rand.Read(p.ppid[:])
	_, _ = rand.Read(p.instance[:])
	k, err := newPKI(cfg, p)
	if err != nil {
		return nil, err
	}
	return &state{k, m}, nil
}

// override merges the configured measurements into the directory's.
func (st *state) override(cfg Config) error {
	if err := cfg.Measurements.check(); err != nil {
		return err
	}
	merged := st.measurements.merge(cfg.Measurements)
	if merged.FMSPC != st.measurements.FMSPC {
		return fmt.Errorf("FMSPC is %x by the directory's certificate, cannot be %x", st.measurements.FMSPC, merged.FMSPC)
	}
	before, err := json.Marshal(store(st.measurements))
	if err != nil {
		return fmt.Errorf("encoding measurements: %w", err)
	}
	after, err := json.Marshal(store(merged))
	if err != nil {
		return fmt.Errorf("encoding measurements: %w", err)
	}
	st.measurements = merged
	if bytes.Equal(before, after) {
		return nil
	}
	return replaceFile(cfg.Dir, filepath.Join(stateDir, measurementsFile), after, 0o600)
}

// publishRoot writes root-ca.pem where it is missing. Another root there means
// that verifiers would not trust this TD, or trust somebody else's.
func (st *state) publishRoot(dir string) error {
	path, want := filepath.Join(dir, RootFile), pemOf(st.pki.root.cert)
	got, err := readFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return replaceFile(dir, RootFile, want, 0o644)
	case err != nil:
		return err
	case !bytes.Equal(got, want):
		return fmt.Errorf("%s is not the root of this trust domain", path)
	}
	return nil
}

func (p *pki) pairs() map[string]*pair {
	return map[string]*pair{CertificateRoot: &p.root, CertificatePCKCA: &p.pckCA, CertificatePCK: &p.pck, CertificateTCBSigner: &p.tcbSigner}
}

// save writes the state into dir, which nobody else sees yet.
func (st *state) save(dir string) error {
	for name, pair := range st.pki.pairs() {
		if err := durable.WriteNew(durable.OS{}, filepath.Join(dir, name+".pem"), pemOf(pair.cert), 0o600); err != nil {
			return err
		}
		if err := saveKey(dir, name, pair.key); err != nil {
			return err
		}
	}
	if err := saveKey(dir, attestationKey, st.pki.attestation); err != nil {
		return err
	}
	text, err := json.Marshal(store(st.measurements))
	if err != nil {
		return fmt.Errorf("encoding measurements: %w", err)
	}
	if err := durable.WriteNew(durable.OS{}, filepath.Join(dir, measurementsFile), text, 0o600); err != nil {
		return err
	}
	return durable.OS{}.SyncDir(dir)
}

func saveKey(dir, name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding key: %w", err)
	}
	return durable.WriteNew(durable.OS{}, filepath.Join(dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func loadState(dir string) (*state, error) {
	st := &state{pki: new(pki)}
	for name, pair := range st.pki.pairs() {
		if err := loadPair(dir, name, pair); err != nil {
			return nil, err
		}
	}
	var err error
	if st.pki.attestation, err = loadKey(dir, attestationKey); err != nil {
		return nil, err
	}
	text, err := readFile(filepath.Join(dir, measurementsFile))
	if err != nil {
		return nil, err
	}
	var stored storedMeasurements
	if err := json.Unmarshal(text, &stored); err != nil {
		return nil, fmt.Errorf("reading %s: %w", measurementsFile, err)
	}
	if st.measurements, err = stored.measurements(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", measurementsFile, err)
	}
	return st, nil
}

func loadPair(dir, name string, p *pair) error {
	text, err := readFile(filepath.Join(dir, name+".pem"))
	if err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return fmt.Errorf("reading %s.pem: not a PEM certificate", name)
	}
	if p.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		return fmt.Errorf("reading %s.pem: %w", name, err)
	}
	if p.key, err = loadKey(dir, name); err != nil {
		return err
	}
	if !p.key.PublicKey.Equal(p.cert.PublicKey) {
		return fmt.Errorf("%s.key is not the key of %s.pem", name, name)
	}
	return nil
}

func loadKey(dir, name string) (*ecdsa.PrivateKey, error) {
	text, err := readFile(filepath.Join(dir, name+".key"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("reading %s.key: not a PEM private key", name)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading %s.key: not PKCS#8", name)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("reading %s.key: not an ECDSA key", name)
	}
	return ec, nil
}

// storedMeasurements is measurements.json: hex where Measurements has bytes.
type storedMeasurements struct {
	Image         string          `json:"image"`
	MRTD          hexBytes        `json:"mrtd"`
	MRSeam        hexBytes        `json:"mrseam"`
	MRConfigID    hexBytes        `json:"mrconfigid"`
	MROwner       hexBytes        `json:"mrowner"`
	MROwnerConfig hexBytes        `json:"mrownerconfig"`
	Attributes    uint64          `json:"attributes"`
	XFAM          uint64          `json:"xfam"`
	TEETCBSVN     hexBytes        `json:"tee_tcb_svn"`
	FMSPC         hexBytes        `json:"fmspc"`
	AppID         hexBytes        `json:"app_id"`
	ComposeHash   hexBytes        `json:"compose_hash"`
	InstanceID    hexBytes        `json:"instance_id"`
	OSImageHash   hexBytes        `json:"os_image_hash"`
	KeyProvider   string          `json:"key_provider"`
	Runtime       []storedRuntime `json:"runtime,omitempty"`
}

type storedRuntime struct {
	Name    string   `json:"name"`
	Payload hexBytes `json:"payload"`
}

type hexBytes []byte

// MarshalText implements [encoding.TextMarshaler].
func (h hexBytes) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *hexBytes) UnmarshalText(text []byte) error {
	b, err := hex.AppendDecode(nil, text)
	if err != nil {
		return fmt.Errorf("want hex: %w", err)
	}
	*h = b
	return nil
}

func store(m Measurements) storedMeasurements {
	s := storedMeasurements{
		Image: m.Image, MRTD: m.MRTD[:], MRSeam: m.MRSeam[:], MRConfigID: m.MRConfigID[:], MROwner: m.MROwner[:], MROwnerConfig: m.MROwnerConfig[:],
		Attributes: m.Attributes, XFAM: m.XFAM, TEETCBSVN: m.TEETCBSVN[:], FMSPC: m.FMSPC[:],
		AppID: m.AppID, ComposeHash: m.ComposeHash, InstanceID: m.InstanceID, OSImageHash: m.OSImageHash, KeyProvider: m.KeyProvider,
	}
	for _, r := range m.Runtime {
		s.Runtime = append(s.Runtime, storedRuntime{r.Name, r.Payload})
	}
	return s
}

func (s storedMeasurements) measurements() (Measurements, error) {
	m := Measurements{
		Image: s.Image, Attributes: s.Attributes, XFAM: s.XFAM, AppID: s.AppID, ComposeHash: s.ComposeHash,
		InstanceID: s.InstanceID, OSImageHash: s.OSImageHash, KeyProvider: s.KeyProvider,
	}
	for _, r := range s.Runtime {
		m.Runtime = append(m.Runtime, RuntimeEvent{r.Name, r.Payload})
	}
	for _, f := range []struct {
		name string
		dst  []byte
		src  hexBytes
	}{
		{"mrtd", m.MRTD[:], s.MRTD},
		{"mrseam", m.MRSeam[:], s.MRSeam},
		{"mrconfigid", m.MRConfigID[:], s.MRConfigID},
		{"mrowner", m.MROwner[:], s.MROwner},
		{"mrownerconfig", m.MROwnerConfig[:], s.MROwnerConfig},
		{"tee_tcb_svn", m.TEETCBSVN[:], s.TEETCBSVN},
		{"fmspc", m.FMSPC[:], s.FMSPC},
	} {
		if len(f.src) != len(f.dst) {
			return Measurements{}, fmt.Errorf("%s of %d bytes, want %d", f.name, len(f.src), len(f.dst))
		}
		copy(f.dst, f.src)
	}
	return m, m.check()
}
