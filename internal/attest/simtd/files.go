package simtd

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
)

// collateralDir holds the collateral as files in the directory of a TD.
const collateralDir = "collateral"

// collateralFiles names the files and the parts of the collateral in them.
func collateralFiles(c *tdx.Collateral) map[string]*[]byte {
	return map[string]*[]byte{
		"tcb-info.json":         &c.TCBInfo,
		"tcb-info-chain.pem":    &c.TCBInfoChain,
		"qe-identity.json":      &c.QEIdentity,
		"qe-identity-chain.pem": &c.QEIdentityChain,
		"pck-crl.der":           &c.PCKCRL,
		"pck-crl-chain.pem":     &c.PCKCRLChain,
		"root-crl.der":          &c.RootCRL,
	}
}

// refreshFiles issues the collateral files anew when they are missing or were
// issued more than an hour ago.
func (t *TD) refreshFiles() error {
	if old, err := readCollateral(filepath.Join(t.dir, collateralDir)); err == nil {
		head, err := readTCBHead(old.TCBInfo)
		age := t.now().Sub(head.IssueDate)
		if err == nil && head.FMSPC == hex.EncodeToString(t.m.FMSPC[:]) && age >= 0 && age < reissueAfter {
			return nil
		}
	}
	c, err := t.collateral()
	if err != nil {
		return err
	}
	return t.writeFiles(c)
}

// writeFiles replaces the files one by one: each is signed for itself, so that
// a reader in between gets a set that holds. A directory that cannot be written
// is left as it is.
func (t *TD) writeFiles(c *tdx.Collateral) error {
	dir := filepath.Join(t.dir, collateralDir)
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	for name, part := range collateralFiles(c) {
		if err == nil {
			err = replaceFile(filepath.Join(dir, name), *part, 0o644)
		}
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing collateral: %w", err)
	}
	return nil
}

// Files is collateral in a directory, read only. It implements
// [tdx.CollateralSource].
type Files struct{ dir string }

var _ tdx.CollateralSource = (*Files)(nil)

// OpenCollateral opens the collateral in dir for a verifier that has no more
// than that: the directory of a software trust domain, or one with the seven
// files of its collateral folder. It writes nothing. An error that is
// [fs.ErrNotExist] says that there is none.
func OpenCollateral(dir string) (*Files, error) {
	sub := filepath.Join(dir, collateralDir)
	if info, err := os.Stat(sub); err == nil && info.IsDir() {
		dir = sub
	}
	f := &Files{dir}
	if _, err := readCollateral(f.dir); err != nil {
		return nil, fmt.Errorf("opening collateral: %w", err)
	}
	return f, nil
}

// Collateral reads the files. Another platform's are an error.
func (f *Files) Collateral(ctx context.Context, fmspc tdx.FMSPC, _ tdx.CA) (*tdx.Collateral, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("reading collateral: %w", err)
	}
	c, err := readCollateral(f.dir)
	if err != nil {
		return nil, fmt.Errorf("reading collateral: %w", err)
	}
	head, err := readTCBHead(c.TCBInfo)
	if err != nil {
		return nil, fmt.Errorf("reading collateral: tcb-info.json: %w", err)
	}
	if head.FMSPC != hex.EncodeToString(fmspc[:]) {
		return nil, fmt.Errorf("reading collateral in %s: it is for FMSPC %s, not %x: %w", f.dir, head.FMSPC, fmspc[:], attest.ErrNoCollateral)
	}
	return c, nil
}

func readCollateral(dir string) (*tdx.Collateral, error) {
	c := new(tdx.Collateral)
	for name, part := range collateralFiles(c) {
		b, err := readFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		*part = b
	}
	return c, nil
}

type tcbHead struct {
	FMSPC     string    `json:"fmspc"`
	IssueDate time.Time `json:"issueDate"`
}

// readTCBHead reads what tells whose TCB info it is, lower-case hex. Nothing in
// it is trusted.
func readTCBHead(body []byte) (tcbHead, error) {
	var signed struct {
		TCBInfo tcbHead `json:"tcbInfo"`
	}
	if err := json.Unmarshal(body, &signed); err != nil {
		return tcbHead{}, fmt.Errorf("reading TCB info: %w", err)
	}
	signed.TCBInfo.FMSPC = strings.ToLower(signed.TCBInfo.FMSPC)
	return signed.TCBInfo, nil
}

// readFile reads a file of bounded size.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the path
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxStateFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(b) > maxStateFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxStateFile)
	}
	return b, nil
}

// writeFile writes a new file and its bytes to the disk.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err //nolint:wrapcheck // it names the path
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// replaceFile puts data at path so that a reader sees the old or the new.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return err //nolint:wrapcheck // it names the path
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err //nolint:wrapcheck // it names the path
	}
	return errors.Join(d.Sync(), d.Close())
}
