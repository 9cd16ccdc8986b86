package simtd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"teekms/internal/durable"
)

// The directory:
//
//	root-ca.pem     the trust root, 0644
//	collateral/     what a PCS would answer, 0644
//	td.json         keys, certificates and measurements, 0600; see storedState
const (
	stateFile      = "td.json"
	maxStateFile   = 1 << 20
	attestationKey = "attestation"
)

type state struct {
	pki *pki
	// set are the measurements that somebody chose, and those that cannot
	// change. The others follow from them each time, so that they stay in tune.
	set Measurements
}

// loadOrMake reads td.json or makes it, and sees to root-ca.pem.
func loadOrMake(cfg Config) (*state, error) {
	if cfg.Ephemeral {
		st, err := loadState(cfg.Dir)
		if err != nil {
			return nil, err
		}
		return st, st.override(cfg)
	}
	if _, err := durable.MkdirAll(durable.OS{}, cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making directory: %w", err)
	}
	st, err := loadState(cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		st, err = makeState(cfg)
	}
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

// replaceFile puts data at name in dir; the lock is the caller's.
func replaceFile(dir, name string, data []byte, mode fs.FileMode) error {
	if err := durable.WriteFile(durable.OS{}, filepath.Join(dir, name), data, mode); err != nil {
		return fmt.Errorf("replacing file: %w", err)
	}
	return nil
}

// makeState makes td.json, unless another process was first.
func makeState(cfg Config) (st *state, err error) {
	err = locked(cfg.Dir, func() error {
		if st, err = loadState(cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if st, err = newState(cfg); err != nil {
			return err
		}
		return st.save(cfg.Dir)
	})
	return st, err
}

// newState draws keys, PPID and instance id.
func newState(cfg Config) (*state, error) {
	if err := cfg.Measurements.check(); err != nil {
		return nil, err
	}
	m := cfg.Measurements.clone()
	m.FMSPC = m.complete().FMSPC
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
	merged := st.set.merge(cfg.Measurements)
	if merged.FMSPC != st.set.FMSPC {
		return fmt.Errorf("FMSPC is %x by the directory's certificate, cannot be %x", st.set.FMSPC, merged.FMSPC)
	}
	before, err := json.Marshal(store(st.set))
	if err != nil {
		return fmt.Errorf("encoding measurements: %w", err)
	}
	after, err := json.Marshal(store(merged))
	if err != nil {
		return fmt.Errorf("encoding measurements: %w", err)
	}
	st.set = merged
	if cfg.Ephemeral || bytes.Equal(before, after) {
		return nil
	}
	return locked(cfg.Dir, func() error { return st.save(cfg.Dir) })
}

// publishRoot writes root-ca.pem where it is missing. Another root there means
// that verifiers would not trust this TD, or trust somebody else's.
func (st *state) publishRoot(dir string) error {
	path, want := filepath.Join(dir, RootFile), pemOf(st.pki.root.cert)
	got, err := readFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return locked(dir, func() error { return replaceFile(dir, RootFile, want, 0o644) })
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

// storedState is td.json: DER in base64 by the name of the certificate, keys in
// PKCS#8.
type storedState struct {
	Certificates map[string][]byte  `json:"certificates"`
	Keys         map[string][]byte  `json:"keys"`
	Measurements storedMeasurements `json:"measurements"`
}

// save writes the state as one file, so that it is there wholly or not at all.
func (st *state) save(dir string) error {
	s := storedState{Certificates: map[string][]byte{}, Keys: map[string][]byte{}, Measurements: store(st.set)}
	keys := map[string]*ecdsa.PrivateKey{attestationKey: st.pki.attestation}
	for name, p := range st.pki.pairs() {
		s.Certificates[name], keys[name] = p.cert.Raw, p.key
	}
	for name, key := range keys {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return fmt.Errorf("encoding %s key: %w", name, err)
		}
		s.Keys[name] = der
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding %s: %w", stateFile, err)
	}
	return replaceFile(dir, stateFile, append(text, '\n'), 0o600)
}

// loadState reads td.json. Its errors quote nothing of it.
func loadState(dir string) (*state, error) {
	text, err := readFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, err
	}
	var stored storedState
	if err := json.Unmarshal(text, &stored); err != nil {
		return nil, fmt.Errorf("reading %s: not the JSON that was written", stateFile)
	}
	st := &state{pki: new(pki)}
	for name, p := range st.pki.pairs() {
		if p.cert, err = x509.ParseCertificate(stored.Certificates[name]); err != nil {
			return nil, fmt.Errorf("reading %s: %s certificate: %w", stateFile, name, err)
		}
		if p.key, err = parseKey(stored.Keys[name]); err != nil {
			return nil, fmt.Errorf("reading %s: %s key: %w", stateFile, name, err)
		}
		if !p.key.PublicKey.Equal(p.cert.PublicKey) {
			return nil, fmt.Errorf("reading %s: %s key is not that of the certificate", stateFile, name)
		}
	}
	if st.pki.attestation, err = parseKey(stored.Keys[attestationKey]); err != nil {
		return nil, fmt.Errorf("reading %s: %s key: %w", stateFile, attestationKey, err)
	}
	if st.set, err = stored.Measurements.measurements(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", stateFile, err)
	}
	return st, nil
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("not PKCS#8")
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, errors.New("not an ECDSA P-256 key")
	}
	return ec, nil
}

// storedMeasurements are measurements with hex where Measurements has bytes.
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
