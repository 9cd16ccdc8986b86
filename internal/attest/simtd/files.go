package simtd

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"teekms/internal/attest/tdx"
	"teekms/internal/durable"
)

// collateralDir holds the collateral as files in the directory of a TD, where
// [tdx.NewDirSource] looks for it.
const collateralDir = "collateral"

// OpenCollateral opens the collateral in the directory of a software trust
// domain for a verifier that has no more than that. It is [tdx.NewDirSource]:
// it makes and writes nothing.
func OpenCollateral(dir string) (*tdx.DirSource, error) {
	return tdx.NewDirSource(dir) //nolint:wrapcheck // a second name for it
}

// refreshFiles issues the collateral files anew when they are missing or were
// issued more than an hour ago.
func (t *TD) refreshFiles() error {
	if t.filesFresh() {
		return nil
	}
	c, err := t.collateral()
	if err != nil {
		return err
	}
	return t.writeFiles(c)
}

// filesFresh says whether the files are all there and of this hour.
func (t *TD) filesFresh() bool {
	source, err := OpenCollateral(t.dir)
	if err != nil {
		return false
	}
	c, err := source.Collateral(context.Background(), t.m.FMSPC, tdx.PlatformCA)
	if err != nil {
		return false
	}
	var body struct {
		TCBInfo struct {
			FMSPC     string    `json:"fmspc"`
			IssueDate time.Time `json:"issueDate"`
		} `json:"tcbInfo"`
	}
	if err := json.Unmarshal(c.TCBInfo, &body); err != nil {
		return false
	}
	age := t.now().Sub(body.TCBInfo.IssueDate)
	return age >= 0 && age < reissueAfter && strings.EqualFold(body.TCBInfo.FMSPC, hex.EncodeToString(t.m.FMSPC[:]))
}

// writeFiles replaces the files one by one: each is signed for itself, so that
// a reader in between gets a set that holds. A directory that cannot be written
// is left as it is.
func (t *TD) writeFiles(c *tdx.Collateral) error {
	err := locked(t.dir, func() error {
		dir := filepath.Join(t.dir, collateralDir)
		if _, err := durable.MkdirAll(durable.OS{}, dir, 0o755); err != nil {
			return fmt.Errorf("making directory: %w", err)
		}
		for name, part := range map[string][]byte{
			tdx.FileTCBInfo: c.TCBInfo, tdx.FileTCBInfoChain: c.TCBInfoChain,
			tdx.FileQEIdentity: c.QEIdentity, tdx.FileQEIdentityChain: c.QEIdentityChain,
			tdx.FilePCKCRL: c.PCKCRL, tdx.FilePCKCRLChain: c.PCKCRLChain, tdx.FileRootCRL: c.RootCRL,
		} {
			if err := swapFile(filepath.Join(dir, name), part); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing collateral: %w", err)
	}
	return nil
}

// swapFile puts data at path so that a reader sees the old or the new. It does
// not wait for the disk: what a crash damages is issued anew.
func swapFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return fmt.Errorf("staging: %w", err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("replacing %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}
