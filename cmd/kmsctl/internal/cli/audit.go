package cli

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"teekms/cmd/internal/argfile"
	"teekms/cmd/kmsctl/internal/auditcheck"
	"teekms/cmd/kmsctl/internal/record"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/cmd/kmsctl/internal/terminal"
	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/durable"
	"teekms/internal/keys"
)

// maxRootFile bounds what says whose log it is, maxNote a checkpoint in a file.
const (
	maxRootFile = 64 << 10
	maxNote     = 64 << 10
)

func newAudit(env Environment) *cobra.Command {
	var admin adminFlags
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read the audit log of a KMS, verify it, prove what is in it",
		Long: `Read and verify the audit log: the record of every key and certificate that a
KMS gave away, of every denial, and of every change of its policy.

What is verified is believed because of the root CA key of the KMS, which
certifies the key that checkpoints are signed with; --root-ca, --dir or --info
says which root that is. Keep a checkpoint somewhere else: with an older one in
hand, a log that was rewritten, truncated or forked since is told from one that
only grew.`,
		Example: `  kmsctl audit list --help
  kmsctl audit verify --help`,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
	}
	admin.register(cmd)
	cmd.AddCommand(newAuditList(env, &admin), newAuditVerify(env, &admin), newAuditCheckpoint(env, &admin),
		newAuditProve(env, &admin), newAuditExport(env, &admin))
	return cmd
}

// rootFlags say whose log it is.
type rootFlags struct{ rootCA, dir, info string }

func (f *rootFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.rootCA, "root-ca", "", "`file` of the root CA certificate of the KMS whose log it must be (default: --ca-cert)")
	fs.StringVar(&f.dir, "dir", "", "key `directory` of that KMS; only root-ca.crt is read")
	fs.StringVar(&f.info, "info", "", "`file` with the bootstrap record of that KMS")
	complete(cmd, "root-ca", file("crt", "pem"))
	complete(cmd, "dir", directory())
	complete(cmd, "info", file("json"))
}

// options reads the root key that the log must be of.
func (f *rootFlags) options(cmd *cobra.Command, admin *adminFlags) (auditcheck.Options, error) {
	given := 0
	for _, s := range []string{f.rootCA, f.dir, f.info} {
		if s != "" {
			given++
		}
	}
	rootCA := f.rootCA
	if f.dir != "" {
		rootCA = filepath.Join(f.dir, "root-ca.crt")
	}
	switch {
	case given > 1:
		return auditcheck.Options{}, usagef(cmd, "give one of --root-ca, --dir and --info")
	case given == 0 && admin.caCert == "":
		return auditcheck.Options{}, usagef(cmd, "give --root-ca, --dir or --info: whose log it must be")
	case given == 0:
		rootCA = admin.caCert
	}
	spki, err := f.spki(cmd.Context(), rootCA)
	if err != nil {
		return auditcheck.Options{}, err
	}
	public, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return auditcheck.Options{}, fmt.Errorf("reading the root key: %w", err)
	}
	root, ok := public.(*ecdsa.PublicKey)
	if !ok {
		return auditcheck.Options{}, errors.New("the root key is no ECDSA key")
	}
	return auditcheck.Options{Root: root, SPKI: spki}, nil
}

func (f *rootFlags) spki(ctx context.Context, rootCA string) ([]byte, error) {
	if f.info != "" {
		text, err := argfile.Read(ctx, f.info, record.MaxSize)
		if err != nil {
			return nil, fmt.Errorf("--info: %w", err)
		}
		r, err := record.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("--info: %s: %w", f.info, err)
		}
		return r.CAPublic, nil
	}
	text, err := argfile.Read(ctx, rootCA, maxRootFile)
	if err != nil {
		return nil, fmt.Errorf("reading the root CA certificate: %w", err)
	}
	c, err := keys.ParseCertificate(text)
	if err != nil {
		return nil, fmt.Errorf("reading the root CA certificate: %s: %w", rootCA, err)
	}
	return c.RawSubjectPublicKeyInfo, nil
}

// replaceFile writes a file that is whole or as it was.
func replaceFile(path string, text []byte) error {
	return durable.WriteFile(durable.OS{}, path, text, 0o644)
}

// older reads a checkpoint that was kept.
func older(ctx context.Context, path string) (string, error) {
	if path == "" {
		return "", nil
	}
	text, err := argfile.Read(ctx, path, maxNote)
	if err != nil {
		return "", fmt.Errorf("--checkpoint: %w", err)
	}
	return string(text), nil
}

// auditCode gives findings their exit code.
func auditCode(err error) error {
	if auditcheck.IsFinding(err) {
		return status.WithCode(status.NotVerified, err)
	}
	return err
}

// running is the log of a running KMS.
type running struct{ *adminClient }

// Head implements auditcheck.Source.
func (r running) Head(ctx context.Context) (auditcheck.Head, error) {
	var res kmsv1.GetAuditCheckpointResponse
	if err := r.do(ctx, "GetAuditCheckpoint", &kmsv1.GetAuditCheckpointRequest{}, &res); err != nil {
		return auditcheck.Head{}, err
	}
	return auditcheck.Head{Checkpoint: res.GetCheckpoint(), Key: res.GetKey(), KeySignature: res.GetKeySignature()}, nil
}

// Records implements auditcheck.Source.
func (r running) Records(ctx context.Context, from uint64) ([][]byte, error) {
	records, _, err := r.page(ctx, from, maxPage)
	bodies := make([][]byte, len(records))
	for i, rec := range records {
		bodies[i] = rec.GetBody()
	}
	return bodies, err
}

// maxPage is the most records that a KMS gives at once.
const maxPage = 1024

// page gets records, which the KMS may give fewer of, and the size of the log.
func (r running) page(ctx context.Context, from uint64, limit uint32) ([]*kmsv1.AuditRecord, uint64, error) {
	var res kmsv1.ListAuditResponse
	if err := r.do(ctx, "ListAudit", &kmsv1.ListAuditRequest{From: from, Limit: limit}, &res); err != nil {
		return nil, 0, err
	}
	for i, rec := range res.GetRecords() {
		if rec.GetSeq() != from+uint64(i) {
			return nil, 0, fmt.Errorf("the KMS gives record %d where record %d belongs", rec.GetSeq(), from+uint64(i))
		}
	}
	return res.GetRecords(), res.GetSize(), nil
}

// prove gets the proof of a record, in the tree of the checkpoint.
func (r running) prove(ctx context.Context, seq, size uint64, head auditcheck.Head) (*auditcheck.Proof, error) {
	var res kmsv1.ProveAuditResponse
	if err := r.do(ctx, "ProveAudit", &kmsv1.ProveAuditRequest{Seq: seq, TreeSize: size}, &res); err != nil {
		return nil, err
	}
	path, err := auditcheck.Hashes(res.GetProof())
	if err != nil {
		return nil, err
	}
	return &auditcheck.Proof{Seq: seq, Body: res.GetRecord().GetBody(), Path: path, Head: head}, nil
}

// continuation gets the proof that one tree begins with another.
func (r running) continuation(ctx context.Context, from, to uint64) ([]tlog.Hash, error) {
	var res kmsv1.ProveAuditConsistencyResponse
	if err := r.do(ctx, "ProveAuditConsistency", &kmsv1.ProveAuditConsistencyRequest{OldSize: from, NewSize: to}, &res); err != nil {
		return nil, err
	}
	return auditcheck.Hashes(res.GetProof())
}

// progress shows on a terminal how far a long reading is.
func (env Environment) progress() (show func(done, total uint64), end func()) {
	if !terminal.IsTerminal(env.Stderr) {
		return nil, func() {}
	}
	shown := time.Time{}
	show = func(done, total uint64) {
		if now := env.Now(); now.Sub(shown) > 200*time.Millisecond {
			shown = now
			fmt.Fprintf(env.Stderr, "\r%d of %d records", done, total) //nolint:errcheck // there is no one left to tell
		}
	}
	return show, func() {
		if !shown.IsZero() {
			fmt.Fprint(env.Stderr, "\r\x1b[K") //nolint:errcheck // as above
		}
	}
}
