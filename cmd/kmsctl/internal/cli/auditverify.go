package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"teekms/cmd/internal/argfile"
	"teekms/cmd/kmsctl/internal/auditcheck"
	"teekms/cmd/kmsctl/internal/terminal"
	"teekms/internal/audit"
)

// auditVerifyFlags are the flags of kmsctl audit verify.
type auditVerifyFlags struct {
	root             rootFlags
	file, checkpoint string
	save             string
	json             bool
}

func newAuditVerify(env Environment, admin *adminFlags) *cobra.Command {
	var f auditVerifyFlags
	cmd := &cobra.Command{
		Use:   "verify {--admin URL | --file EXPORT} {--root-ca FILE | --dir CERTDIR | --info FILE}",
		Short: "Verify the whole audit log, online or from an export",
		Long: `Read every record and check that each follows from the one before, that all of
them are what the KMS signed as its checkpoint, and that the key of the
checkpoint is certified by the root CA key.

With --checkpoint the log must also begin with what that older checkpoint was
signed over. Without one, a log that was cut short or rewritten by somebody who
also replaced the KMS's database cannot be told from the true one.`,
		Example: `  kmsctl audit verify --admin https://kms.example.com:9101 --ca-cert root-ca.crt --checkpoint last-week.txt
  kmsctl audit verify --admin http://127.0.0.1:8001 --dir /etc/kms/certs --save today.txt
  kmsctl audit verify --file audit.jsonl --root-ca root-ca.crt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, env, admin) },
	}
	f.root.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.file, "file", "", "verify this export `file` instead of a running KMS")
	fs.StringVar(&f.checkpoint, "checkpoint", "", "`file` with an older checkpoint that the log must continue")
	fs.StringVar(&f.save, "save", "", "write the checkpoint that was verified to this `file`, for the next time")
	fs.BoolVar(&f.json, "json", false, "print the result as JSON")
	complete(cmd, "file", file("jsonl"))
	complete(cmd, "checkpoint", file())
	complete(cmd, "save", file())
	return cmd
}

func (f *auditVerifyFlags) run(cmd *cobra.Command, env Environment, admin *adminFlags) error {
	if f.file != "" && admin.url != "" {
		return usagef(cmd, "--file or --admin, not both")
	}
	o, err := f.root.options(cmd, admin)
	if err != nil {
		return err
	}
	if o.Older, err = older(cmd.Context(), f.checkpoint); err != nil {
		return err
	}
	source, done, err := f.source(cmd, env, admin)
	if err != nil {
		return err
	}
	defer done()
	show, end := env.progress()
	o.Progress = show
	r, err := auditcheck.Verify(cmd.Context(), source, o)
	end()
	if err != nil {
		return auditCode(err)
	}
	if f.save != "" {
		if err := replaceFile(f.save, []byte(r.Head.Checkpoint)); err != nil {
			return fmt.Errorf("--save: %w", err)
		}
	}
	if f.json {
		return env.writeJSON(reportJSON(r))
	}
	p := env.printer()
	writeReport(p, r)
	return p.Err()
}

// source is where the log comes from.
func (f *auditVerifyFlags) source(cmd *cobra.Command, env Environment, admin *adminFlags) (auditcheck.Source, func(), error) {
	if f.file == "" {
		c, err := admin.client(cmd, env)
		return running{c}, func() {}, err
	}
	export := auditcheck.OpenFile(func() (io.ReadCloser, error) { return openRegular(f.file) })
	return export, func() { _ = export.Close() }, nil
}

// openRegular opens a file, and no pipe: an export is read twice.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe has its writer waited for
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err == nil && !info.Mode().IsRegular() {
		_ = f.Close() // only read
		return nil, fmt.Errorf("%s is no regular file, and is to be read twice", path)
	}
	return f, nil
}

type checkpointJSON struct {
	Origin     string    `json:"origin"`
	Size       uint64    `json:"size"`
	Root       string    `json:"root"`
	Generation uint64    `json:"generation"`
	Time       time.Time `json:"time"`
}

func checkpointOf(c audit.Checkpoint) checkpointJSON {
	return checkpointJSON{c.Origin, c.Size, c.Root.String(), c.Generation, c.Time}
}

func reportJSON(r *auditcheck.Report) any {
	out := struct {
		Verified   bool                  `json:"verified"`
		Checkpoint checkpointJSON        `json:"checkpoint"`
		Older      *checkpointJSON       `json:"older,omitempty"`
		Kinds      map[audit.Kind]uint64 `json:"kinds"`
	}{true, checkpointOf(r.Checkpoint), nil, r.Kinds}
	if r.Older != nil {
		o := checkpointOf(*r.Older)
		out.Older = &o
	}
	return out
}

func writeReport(p *terminal.Printer, r *auditcheck.Report) {
	const width = 12
	c := r.Checkpoint
	p.Marked(terminal.Good, "records", width, fmt.Sprintf("%d follow from each other", c.Size))
	p.Marked(terminal.Good, "checkpoint", width, fmt.Sprintf("%s, signed %s", c.Root, c.Time.Format(time.RFC3339)))
	p.Marked(terminal.Good, "key", width, "certified by the root CA key: "+c.Origin)
	if r.Older != nil {
		p.Marked(terminal.Good, "older", width, fmt.Sprintf("begins with the %d records of %s", r.Older.Size, r.Older.Time.Format(time.RFC3339)))
	} else {
		p.Marked(terminal.Open, "older", width, "no --checkpoint to compare with")
	}
	if c.Size == 0 {
		return
	}
	p.Line("From %s to %s:", r.First.Format(time.RFC3339), r.Last.Format(time.RFC3339))
	kinds := audit.Kinds()
	for kind := range r.Kinds {
		if !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	for _, kind := range kinds {
		if n := r.Kinds[kind]; n > 0 {
			p.Line("  %-18s %d", kind, n)
		}
	}
}

func newAuditCheckpoint(env Environment, admin *adminFlags) *cobra.Command {
	var root rootFlags
	var out, before string
	cmd := &cobra.Command{
		Use:   "checkpoint --admin URL {--root-ca FILE | --dir CERTDIR | --info FILE}",
		Short: "Get the signed checkpoint of the audit log, to keep it elsewhere",
		Long: `Get the checkpoint of the log as it is now, check its signature, and print it.
Kept where nobody who runs the KMS can change it, it shows later that the log
still begins with the same records.

With --checkpoint the new one must continue that older one, which the KMS proves
without showing the records.`,
		Example: `  kmsctl audit checkpoint --admin https://kms.example.com:9101 --ca-cert root-ca.crt --out today.txt
  kmsctl audit checkpoint --admin http://127.0.0.1:8001 --dir /etc/kms/certs --checkpoint yesterday.txt`,
		Args: noArgs,
	}
	root.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&before, "checkpoint", "", "`file` with an older checkpoint that the log must continue")
	fs.StringVar(&out, "out", "", "write the checkpoint to this `file` instead of standard output")
	complete(cmd, "checkpoint", file())
	complete(cmd, "out", file())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := root.options(cmd, admin)
		if err != nil {
			return err
		}
		if o.Older, err = older(cmd.Context(), before); err != nil {
			return err
		}
		c, err := admin.client(cmd, env)
		if err != nil {
			return err
		}
		head, err := auditcheck.Continues(cmd.Context(), running{c}, running{c}.continuation, o)
		if err != nil {
			return auditCode(err)
		}
		if out != "" {
			return replaceFile(out, []byte(head.Checkpoint))
		}
		return env.write([]byte(head.Checkpoint))
	}
	return cmd
}

func newAuditExport(env Environment, admin *adminFlags) *cobra.Command {
	var root rootFlags
	var out, before string
	cmd := &cobra.Command{
		Use:   "export --admin URL --out FILE {--root-ca FILE | --dir CERTDIR | --info FILE}",
		Short: "Write the whole audit log to a file that can be verified offline",
		Long: `Read the whole log, verify it on the way, and write it as JSON lines: every
record as it is stored, in base64, and at the end the signed checkpoint. kmsctl
audit verify --file verifies the file without the KMS.

Where the log does not verify, nothing is left at FILE.`,
		Example: `  kmsctl audit export --admin https://kms.example.com:9101 --ca-cert root-ca.crt --out audit.jsonl`,
		Args:    noArgs,
	}
	root.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&out, "out", "", "`file` to write, - for standard output (required)")
	fs.StringVar(&before, "checkpoint", "", "`file` with an older checkpoint that the log must continue")
	complete(cmd, "out", file("jsonl"))
	complete(cmd, "checkpoint", file())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if out == "" {
			return usagef(cmd, "--out is required")
		}
		o, err := root.options(cmd, admin)
		if err != nil {
			return err
		}
		if o.Older, err = older(cmd.Context(), before); err != nil {
			return err
		}
		c, err := admin.client(cmd, env)
		if err != nil {
			return err
		}
		show, end := env.progress()
		o.Progress = show
		defer end()
		return auditCode(export(cmd, env, out, running{c}, o))
	}
	return cmd
}

// export writes a whole file or none.
func export(cmd *cobra.Command, env Environment, out string, s auditcheck.Source, o auditcheck.Options) error {
	if out == "-" {
		_, err := auditcheck.Export(cmd.Context(), env.Stdout, s, o)
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".kmsctl-audit-*")
	if err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is gone where all went well
	r, err := auditcheck.Export(cmd.Context(), f, s, o)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), out); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	p := env.printer()
	p.Line("%d records written to %s", r.Checkpoint.Size, out)
	return p.Err()
}

// auditProveFlags are the flags of kmsctl audit prove.
type auditProveFlags struct {
	root      rootFlags
	file, out string
	json      bool
}

func newAuditProve(env Environment, admin *adminFlags) *cobra.Command {
	var f auditProveFlags
	cmd := &cobra.Command{
		Use:   "prove {SEQ --admin URL | --file PROOF} {--root-ca FILE | --dir CERTDIR | --info FILE}",
		Short: "Prove that a record is in the log, without showing the others",
		Long: `Get the proof that record SEQ is in the tree of the signed checkpoint, verify
it, and show the record. --out keeps the proof in a file that needs nothing else
but the root CA certificate; --file verifies such a file.`,
		Example: `  kmsctl audit prove 42 --admin https://kms.example.com:9101 --ca-cert root-ca.crt --out release-42.json
  kmsctl audit prove --file release-42.json --root-ca root-ca.crt`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args, env, admin) },
	}
	f.root.register(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.file, "file", "", "verify the proof in this `file` instead of asking a KMS")
	fs.StringVar(&f.out, "out", "", "write the proof to this `file`")
	fs.BoolVar(&f.json, "json", false, "print the record as JSON")
	complete(cmd, "file", file("json"))
	complete(cmd, "out", file("json"))
	return cmd
}

func (f *auditProveFlags) run(cmd *cobra.Command, args []string, env Environment, admin *adminFlags) error {
	switch {
	case f.file != "" && (admin.url != "" || len(args) > 0 || f.out != ""):
		return usagef(cmd, "--file is verified alone: without SEQ, --admin and --out")
	case f.file == "" && len(args) != 1:
		return usagef(cmd, "give the number of one record")
	}
	o, err := f.root.options(cmd, admin)
	if err != nil {
		return err
	}
	proof, err := f.proof(cmd, args, env, admin, o)
	if err != nil {
		return auditCode(err)
	}
	r, c, err := proof.Verify(o)
	if err != nil {
		return auditCode(err)
	}
	if f.out != "" {
		text, err := proof.Marshal()
		if err != nil {
			return err
		}
		if err := replaceFile(f.out, text); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
	}
	if f.json {
		return env.writeJSON(recordJSON(r))
	}
	p := env.printer()
	p.Marked(terminal.Good, "record", 10, recordLine(r))
	p.Marked(terminal.Good, "checkpoint", 10, fmt.Sprintf("over %d records, signed %s by %s", c.Size, c.Time.Format(time.RFC3339), c.Origin))
	return p.Err()
}

func (f *auditProveFlags) proof(cmd *cobra.Command, args []string, env Environment, admin *adminFlags, o auditcheck.Options) (*auditcheck.Proof, error) {
	if f.file != "" {
		text, err := argfile.Read(cmd.Context(), f.file, auditcheck.MaxProof)
		if err != nil {
			return nil, fmt.Errorf("--file: %w", err)
		}
		return auditcheck.ParseProof(text)
	}
	seq, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return nil, usagef(cmd, "%q is not the number of a record", args[0])
	}
	c, err := admin.client(cmd, env)
	if err != nil {
		return nil, err
	}
	head, size, err := auditcheck.Current(cmd.Context(), running{c}, o)
	if err != nil {
		return nil, err
	}
	if seq >= size {
		return nil, fmt.Errorf("the log has %d records, the last of them is %d", size, int64(size)-1)
	}
	return running{c}.prove(cmd.Context(), seq, size, head)
}
