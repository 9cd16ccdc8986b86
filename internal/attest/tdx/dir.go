package tdx

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The files of a collateral directory (docs/evidence.md#collateral-directory).
const (
	FileTCBInfo         = "tcb-info.json"
	FileTCBInfoChain    = "tcb-info-chain.pem"
	FileQEIdentity      = "qe-identity.json"
	FileQEIdentityChain = "qe-identity-chain.pem"
	FilePCKCRL          = "pck-crl.der"
	FilePCKCRLChain     = "pck-crl-chain.pem"
	FileRootCRL         = "root-crl.der"
)

// maxCollateralFile bounds each file of a collateral directory, in bytes.
const maxCollateralFile = 4 << 20

// DirSource reads collateral from files. Collateral reads them anew each time,
// so that they can be replaced.
type DirSource struct{ dir string }

var _ CollateralSource = (*DirSource)(nil)

// NewDirSource makes a source of the files in dir, or in dir/collateral if
// that is a directory.
func NewDirSource(dir string) (*DirSource, error) {
	for _, d := range []string{filepath.Join(dir, "collateral"), dir} {
		info, err := os.Stat(d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("opening collateral directory: %w", err)
		}
		if info.IsDir() {
			return &DirSource{dir: d}, nil
		}
	}
	return nil, fmt.Errorf("opening collateral directory %s: %w", dir, fs.ErrNotExist)
}

// Collateral reads the seven files. Collateral of several platform families
// stands in directories named by the FMSPC in lower-case hex; a family without
// one gets the files of the directory itself.
func (s *DirSource) Collateral(ctx context.Context, fmspc FMSPC, _ CA) (*Collateral, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, hex.EncodeToString(fmspc[:]))
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		dir = s.dir
	}
	c := &Collateral{}
	for name, field := range c.files() {
		b, err := readLimited(filepath.Join(dir, name), maxCollateralFile)
		if err != nil {
			return nil, fmt.Errorf("reading collateral: %w", err)
		}
		*field = b
	}
	return c, nil
}

// files says which file holds which part.
func (c *Collateral) files() map[string]*[]byte {
	return map[string]*[]byte{
		FileTCBInfo:         &c.TCBInfo,
		FileTCBInfoChain:    &c.TCBInfoChain,
		FileQEIdentity:      &c.QEIdentity,
		FileQEIdentityChain: &c.QEIdentityChain,
		FilePCKCRL:          &c.PCKCRL,
		FilePCKCRLChain:     &c.PCKCRLChain,
		FileRootCRL:         &c.RootCRL,
	}
}

// WriteDir writes c into the existing directory dir in the layout that
// [DirSource] reads.
func (c *Collateral) WriteDir(dir string) error {
	for name, field := range c.files() {
		if err := os.WriteFile(filepath.Join(dir, name), *field, 0o644); err != nil {
			return fmt.Errorf("writing collateral: %w", err)
		}
	}
	return nil
}
