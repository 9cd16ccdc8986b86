// Package subject gathers what there is to verify about one KMS: the record of
// its bootstrap and the certificates that stand for its keys, from a key
// directory, from a running KMS or from a record alone. It judges nothing.
package subject

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"teekms/cmd/internal/argfile"
	"teekms/cmd/kmsctl/internal/privatefile"
	"teekms/cmd/kmsctl/internal/record"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/internal/durable"
)

// Kind is where a subject comes from.
type Kind string

// The kinds.
const (
	Dir  Kind = "dir"
	URL  Kind = "url"
	Info Kind = "info"
)

// Subject is what there is to verify. What is nil was not at hand.
type Subject struct {
	// Kind and Location say where it comes from.
	Kind     Kind
	Location string
	// Record is the record of the bootstrap, nil with RecordErr.
	Record *record.Record
	// RecordErr says why the record could not be read.
	RecordErr error
	// CA is the root CA certificate.
	CA *Certificate
	// Leaf is the certificate of the RPC listener: rpc.crt, or what the TLS
	// peer showed.
	Leaf *Certificate
	// Host is the name that the TLS peer was called by.
	Host string
	// ServerName is a name that the TLS peer's certificate must have; "" for any.
	ServerName string
	// Live says that Leaf is in use now: it must be valid.
	Live bool
	// K256Public is the secp256k1 key that the KMS says it has.
	K256Public []byte
	// TrustRoot is the SHA-256 of the root to which the KMS says that it
	// verifies Evidence, and Insecure the settings that it says weaken it.
	TrustRoot []byte
	Insecure  []string
	// PrivateKeys is what the private files of a directory say of themselves,
	// which nothing here vouches for.
	PrivateKeys *privatefile.Report
	// Unfinished tells that the directory is being changed, or that a change of it
	// was interrupted.
	Unfinished bool
	// Plaintext says that the KMS was asked without TLS.
	Plaintext bool
}

// Certificate is a certificate, or the reason why there is none in what was
// said to be one.
type Certificate struct {
	*x509.Certificate
	// Intermediates came with it.
	Intermediates []*x509.Certificate
	// From says where it was found.
	From string
	// Err is set when it could not be read; Certificate is nil then.
	Err error
}

// The files of a key directory that hold nothing secret. Of the others it is only
// looked at whether they are sealed.
const (
	fileRecord = "bootstrap-info.json"
	fileCA     = "root-ca.crt"
	fileRPC    = "rpc.crt"
	// dirStage is there while the directory is changed (docs/keydir.md).
	dirStage = ".stage"
)

const maxCertificateFile = 64 << 10

// FromDir reads the public files of a key directory. An error says so where a
// change of the directory is not finished.
func FromDir(dir string) (*Subject, error) {
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("reading key directory: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("reading key directory: %s is not a directory", dir)
	}
	_, err := os.Lstat(filepath.Join(dir, dirStage))
	unfinished := err == nil
	s, err := readPublic(dir)
	switch {
	case err == nil:
		s.Unfinished = unfinished
	case unfinished:
		err = fmt.Errorf("%w (%s)", err, UnfinishedHint)
	}
	return s, err
}

// UnfinishedHint says what can be done about a key directory with a stage.
const UnfinishedHint = "a change of this directory is going on, or was interrupted: it has a " + dirStage +
	", and the next start of the KMS, or the next kmsctl seal verb, finishes the change or undoes it"

func readPublic(dir string) (*Subject, error) {
	// What is no regular file is none of a KMS.
	read := durable.OS{}.ReadFile
	s, err := readRecord(read, filepath.Join(dir, fileRecord))
	if errors.Is(err, os.ErrNotExist) {
		err = status.WithCode(status.NotVerified, fmt.Errorf("there is nothing to verify: %s has no %s, as a KMS leaves it that was adopted or onboarded without one", dir, fileRecord))
	}
	if err != nil {
		return nil, err
	}
	s.Kind, s.Location, s.PrivateKeys = Dir, dir, privatefile.Look(dir)
	if s.CA, err = readCertificate(read, filepath.Join(dir, fileCA)); err != nil {
		return nil, err
	}
	s.Leaf, err = readCertificate(read, filepath.Join(dir, fileRPC))
	return s, err
}

// FromInfo reads a record, and the root CA certificate where caFile is not
// empty.
func FromInfo(ctx context.Context, path, caFile string) (*Subject, error) {
	read := func(path string, limit int64) ([]byte, error) { return argfile.Read(ctx, path, limit) }
	s, err := readRecord(read, path)
	if err != nil {
		return nil, err
	}
	s.Kind, s.Location = Info, path
	if caFile != "" {
		s.CA, err = readCertificate(read, caFile)
	}
	return s, err
}

func readRecord(read func(path string, limit int64) ([]byte, error), path string) (*Subject, error) {
	text, err := read(path, record.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("reading record: %w", err)
	}
	s := &Subject{}
	s.Record, s.RecordErr = record.Parse(text)
	return s, nil
}

func readCertificate(read func(path string, limit int64) ([]byte, error), path string) (*Certificate, error) {
	text, err := read(path, maxCertificateFile)
	if err != nil {
		return nil, fmt.Errorf("reading certificate: %w", err)
	}
	return parseCertificate(text, path), nil
}

// parseCertificate reads exactly one certificate in PEM.
func parseCertificate(text []byte, from string) *Certificate {
	c := &Certificate{From: from}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		c.Err = errors.New("not a PEM certificate")
		return c
	}
	if next, _ := pem.Decode(rest); next != nil {
		c.Err = errors.New("more than one PEM block")
		return c
	}
	c.Certificate, c.Err = x509.ParseCertificate(block.Bytes)
	return c
}
