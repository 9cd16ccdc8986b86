// Package clientfile reads the configuration file of clients, which other tools
// share (docs/kmsctl.md#the-client-file). It is only read, never made.
package clientfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"teekms/internal/durable"
	"teekms/internal/keys"
)

// Variable is the environment variable that names the file.
const Variable = "KMS_CLI_CONF"

// maxFile bounds the file, in bytes.
const maxFile = 1 << 20

// File is what is read of the file. Whatever else is in it is for other tools.
type File struct {
	// Path is where it was read from, or would have been.
	Path string
	// Found says whether there is one.
	Found bool
	// BootstrapServerURL is where the bootstrap server is: bootstrap_server_url,
	// else kms_server_url with https for http; "" where there is neither.
	BootstrapServerURL string
	// AccessToken is kms_access_token.
	AccessToken keys.Secret
	// PKCS12Path and PKCS12Password are those of a client certificate,
	// ssl_client_pkcs12_path and ssl_client_pkcs12_password.
	PKCS12Path     string
	PKCS12Password keys.Secret
	// ExpectFile, TrustRoot, Collateral, PCCS and PinSPKI say how the bootstrap
	// server is known, as the flags of the same names do: bootstrap_expect_file,
	// bootstrap_trust_root, bootstrap_collateral, bootstrap_pccs and
	// bootstrap_pin_spki. Paths are absolute, or relative to the directory of the
	// file.
	ExpectFile, TrustRoot, Collateral, PCCS, PinSPKI string
}

// Load reads the file that KMS_CLI_CONF names, which must be there, else
// ~/.cosmian/kms.json, which may be missing.
func Load(getenv func(string) string) (*File, error) {
	path, named := getenv(Variable), true
	if path == "" {
		home := getenv("HOME")
		if home == "" {
			return &File{}, nil
		}
		path, named = filepath.Join(home, ".cosmian", "kms.json"), false
	}
	f := &File{Path: path}
	text, err := durable.OS{}.ReadFile(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return f, nil
	}
	if err == nil {
		f, err = Parse(path, text)
	}
	if err != nil {
		from := path
		if named {
			from += " (" + Variable + ")"
		}
		return nil, fmt.Errorf("reading the client file %s: %w", from, err)
	}
	return f, nil
}

// Parse reads the text of the file at path. An error holds nothing of the text.
func Parse(path string, text []byte) (*File, error) {
	f := &File{Path: path, Found: true}
	if err := f.read(text); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *File) read(text []byte) error {
	var fields struct {
		BootstrapServerURL string `json:"bootstrap_server_url"`
		ServerURL          string `json:"kms_server_url"`
		AccessToken        string `json:"kms_access_token"`
		PKCS12Path         string `json:"ssl_client_pkcs12_path"`
		PKCS12Password     string `json:"ssl_client_pkcs12_password"`
		ExpectFile         string `json:"bootstrap_expect_file"`
		TrustRoot          string `json:"bootstrap_trust_root"`
		Collateral         string `json:"bootstrap_collateral"`
		PCCS               string `json:"bootstrap_pccs"`
		PinSPKI            string `json:"bootstrap_pin_spki"`
	}
	if err := json.Unmarshal(text, &fields); err != nil {
		return describe(err)
	}
	f.BootstrapServerURL = fields.BootstrapServerURL
	if f.BootstrapServerURL == "" {
		f.BootstrapServerURL = fields.ServerURL
		if rest, ok := strings.CutPrefix(fields.ServerURL, "http://"); ok {
			f.BootstrapServerURL = "https://" + rest
		}
	}
	f.AccessToken, f.PKCS12Path = keys.NewSecret([]byte(fields.AccessToken)), fields.PKCS12Path
	f.PKCS12Password = keys.NewSecret([]byte(fields.PKCS12Password))
	f.ExpectFile, f.TrustRoot, f.Collateral = f.beside(fields.ExpectFile), f.beside(fields.TrustRoot), f.beside(fields.Collateral)
	f.PCCS, f.PinSPKI = fields.PCCS, fields.PinSPKI
	return nil
}

// beside makes a path relative to the file one that is good from everywhere.
func (f *File) beside(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(f.Path), path)
}

// describe keeps the values of the file, which may be secrets, out of an error.
func describe(err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if e.Field == "" {
			return errors.New("not a JSON object")
		}
		return fmt.Errorf("%s: want a string", e.Field)
	}
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("not JSON, from byte %d on", e.Offset)
	}
	return errors.New("not JSON")
}
