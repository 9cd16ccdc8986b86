package cli_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"teekms/cmd/kmsctl/internal/status"
	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
	"teekms/internal/keys"
	"teekms/internal/registry"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/kms"
)

// nothingCached has nothing to forget.
type nothingCached struct{}

func (nothingCached) ClearCache(context.Context, string, string) error { return nil }

// auditKMS is an admin listener over a log, and the files that an auditor has.
type auditKMS struct {
	store *audittest.Store
	id    audit.Identity
	log   *audit.Log
	url   string
	// rootCA is the file of the root CA certificate.
	rootCA string
}

func newAuditKMS(t *testing.T) *auditKMS {
	t.Helper()
	roots, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	k := &auditKMS{store: audittest.NewStore(), rootCA: filepath.Join(t.TempDir(), "root-ca.crt")}
	if k.id, err = audit.IdentityOf(roots); err != nil {
		t.Fatal(err)
	}
	der, err := keys.NewRootCA(roots, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k.rootCA, keys.CertificatePEM(der), 0o644); err != nil {
		t.Fatal(err)
	}
	k.start(t)
	return k
}

// start starts the KMS, anew where there was one.
func (k *auditKMS) start(t *testing.T) {
	t.Helper()
	k.log = audittest.NewLog(t, k.store, func(c *audit.Config) { c.Identity = k.id })
	admin, err := kms.NewAdmin(kms.AdminConfig{Images: nothingCached{}, Audit: k.log})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := rpc.New(rpc.Config{Log: zap.NewNop(), Access: kms.AdminAccess(), Errors: kms.AdminErrors()})
	if err != nil {
		t.Fatal(err)
	}
	h, err := serve.NewMux(serve.MuxConfig{Service: admin.RPC(), Chain: chain})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	k.url = srv.URL
}

func (k *auditKMS) append(t *testing.T, kind audit.Kind, n int, fields map[string]string) {
	t.Helper()
	for range n {
		if _, err := k.log.Append(t.Context(), audit.Event{Kind: kind, Fields: fields}); err != nil {
			t.Fatal(err)
		}
	}
}

// audit runs kmsctl audit against the KMS.
func (k *auditKMS) audit(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return run(t.Context(), append([]string{"audit", args[0], "--admin", k.url}, args[1:]...)...)
}

func TestAuditList(t *testing.T) {
	k := newAuditKMS(t)
	k.append(t, audit.Start, 1, map[string]string{"version": "v1.2.3"})
	k.append(t, audit.ReleaseAppKey, 1500, map[string]string{"app_id": "0a"})
	k.append(t, audit.Denial, 2, map[string]string{"reason": "Boot denied: \x1b[2Jno", "app_id": "0b"})
	if _, err := k.log.Append(t.Context(), audit.Event{
		Kind: audit.RegistryChange, Edits: []registry.Edit{{Op: registry.Add, Rule: registry.Rule{Kind: registry.App, Value: "0c"}}},
	}); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		// lines is how many there are, first and last what is in those.
		lines       int
		first, last string
	}{
		{"the newest", nil, 50, "1454 ", "1503 "},
		{"fewer", []string{"--limit", "2"}, 2, "1502 ", "registry_change [add app 0c]"},
		{"all of a kind", []string{"--kind", "denial", "--limit", "0"}, 2, "1501 ", `reason="Boot denied: \x1b[2Jno"`},
		{"two kinds, far apart", []string{"--kind", "start", "--kind", "registry_change"}, 2, "0 ", "1503 "},
		{"from a record on", []string{"--from", "1400"}, 50, "1400 ", "1449 "},
		{"from a record to the end", []string{"--from", "10", "--limit", "0"}, 1494, "10 ", "1503 "},
		{"since just now", []string{"--since", "1h", "--kind", "start"}, 1, "0 ", "version=v1.2.3"},
		{"since tomorrow", []string{"--since", time.Now().Add(24 * time.Hour).Format(time.RFC3339)}, 0, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, out, stderr := k.audit(t, append([]string{"list"}, tt.args...)...)
			if code != status.OK || stderr != "" {
				t.Fatalf("list = %d, %q", code, stderr)
			}
			lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
			if out == "" {
				lines = nil
			}
			if len(lines) != tt.lines {
				t.Fatalf("%d lines, want %d:\n%s", len(lines), tt.lines, out)
			}
			if tt.lines > 0 && (!strings.HasPrefix(lines[0], tt.first) || !strings.Contains(lines[len(lines)-1], tt.last)) {
				t.Errorf("lines from %q to %q, want %q to %q", lines[0], lines[len(lines)-1], tt.first, tt.last)
			}
			if strings.Contains(out, "\x1b") {
				t.Error("what was recorded moves the cursor")
			}
		})
	}
	code, out, _ := k.audit(t, "list", "--json", "--limit", "1")
	var got struct {
		Seq      uint64
		Kind     string
		Revision uint64
		Edits    []map[string]string
	}
	if err := json.Unmarshal([]byte(out), &got); code != status.OK || err != nil || got.Seq != 1503 || got.Revision != 1 || got.Edits[0]["value"] != "0c" {
		t.Errorf("list --json = %d, %s, %v", code, out, err)
	}
	code, _, stderr := k.audit(t, "list", "--from", "1600")
	if code != status.Failed || !strings.Contains(stderr, "beyond the end of the audit log: it has 1504 records") {
		t.Errorf("list beyond the end = %d, %q", code, stderr)
	}
}

func TestAuditListFollows(t *testing.T) {
	k := newAuditKMS(t)
	k.append(t, audit.Start, 1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs buffer
	done := make(chan int)
	go func() {
		done <- runTo(ctx, &out, &errs, "audit", "list", "--admin", k.url, "--follow", "--kind", "stop")
	}()
	k.append(t, audit.Stop, 1, map[string]string{"why": "because"})
	for !strings.Contains(out.String(), "1 ") || !strings.Contains(out.String(), "why=because") {
		if t.Context().Err() != nil {
			t.Fatal("nothing came")
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if code := <-done; code != status.OK || errs.String() != "" {
		t.Errorf("list --follow = %d, %q, want 0 when it is interrupted", code, errs.String())
	}
}

// TestAuditor is what an auditor does over time: verify, keep the checkpoint,
// come back; and find out when the database was set back in between.
func TestAuditor(t *testing.T) {
	k := newAuditKMS(t)
	dir := t.TempDir()
	kept, export, proof := filepath.Join(dir, "kept.txt"), filepath.Join(dir, "audit.jsonl"), filepath.Join(dir, "proof.json")
	k.append(t, audit.ReleaseAppKey, 20, map[string]string{"app_id": "0a"})
	before := k.store.State()
	k.append(t, audit.ReleaseAppKey, 10, nil)

	must := func(want string, args ...string) {
		t.Helper()
		code, out, stderr := run(t.Context(), args...)
		if code != status.OK || stderr != "" || !strings.Contains(out, want) {
			t.Fatalf("kmsctl %v = %d, %q, %q, want %q", args, code, out, stderr, want)
		}
	}
	refused := func(wantCode int, want string, args ...string) {
		t.Helper()
		code, out, stderr := run(t.Context(), args...)
		if code != wantCode || !strings.Contains(stderr, want) {
			t.Fatalf("kmsctl %v = %d, %q, %q, want %d, %q", args, code, out, stderr, wantCode, want)
		}
	}
	live := func(command string, args ...string) []string {
		return append([]string{"audit", command, "--admin", k.url, "--root-ca", k.rootCA}, args...)
	}
	must("30 follow from each other", live("verify", "--save", kept)...)
	must("30 follow from each other", "audit", "verify", "--admin", k.url, "--dir", filepath.Dir(k.rootCA))
	must("30 records written", live("export", "--out", export)...)
	must("record      ", live("prove", "7", "--out", proof)...)
	k.append(t, audit.Denial, 5, nil)
	must("begins with the 30 records of", live("verify", "--checkpoint", kept)...)
	must(`"verified": true`, live("verify", "--checkpoint", kept, "--json")...)
	must("\n35\n", live("checkpoint", "--checkpoint", kept)...)
	must("denial             5", live("verify")...)

	// Offline, nothing but the files is needed.
	must("30 follow from each other", "audit", "verify", "--file", export, "--root-ca", k.rootCA, "--checkpoint", kept)
	must("7 ", "audit", "prove", "--file", proof, "--root-ca", k.rootCA)
	must(`"seq": 7`, "audit", "prove", "--file", proof, "--root-ca", k.rootCA, "--json")

	other := newAuditKMS(t)
	for _, args := range [][]string{
		{"verify", "--file", export}, {"prove", "--file", proof}, {"verify", "--admin", k.url}, {"checkpoint", "--admin", k.url}, {"prove", "7", "--admin", k.url},
	} {
		refused(status.NotVerified, "not certified", append([]string{"audit", args[0], "--root-ca", other.rootCA}, args[1:]...)...)
	}
	text, err := os.ReadFile(export)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(text), "\n")
	lines[3], lines[4] = lines[4], lines[3]
	if err := os.WriteFile(export+"2", []byte(strings.Join(lines, "")), 0o644); err != nil {
		t.Fatal(err)
	}
	refused(status.NotVerified, "reordered", "audit", "verify", "--file", export+"2", "--root-ca", k.rootCA)

	// The KMS is stopped, its database set back, and it is started again.
	k.store.SetState(before)
	k.start(t)
	refused(status.NotVerified, "truncated: it had 30 records", live("verify", "--checkpoint", kept)...)
	refused(status.NotVerified, "truncated: it had 30 records", live("checkpoint", "--checkpoint", kept)...)
	k.append(t, audit.ReleaseAppKey, 15, nil)
	refused(status.NotVerified, "forked: its first 30 records", live("verify", "--checkpoint", kept)...)
	refused(status.NotVerified, "forked: its first 30 records", live("checkpoint", "--checkpoint", kept)...)
	refused(status.NotVerified, "forked: its first 30 records", live("export", "--checkpoint", kept, "--out", export+"3")...)
	if left, err := filepath.Glob(filepath.Join(dir, "*3*")); err != nil || len(left) > 0 {
		t.Errorf("files left by an export that did not verify: %v", left)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".kmsctl*")); err != nil || len(left) > 0 {
		t.Errorf("files left by an export that did not verify: %v", left)
	}
	must("35 follow from each other", live("verify")...)

	// Somebody rewrites a record in place.
	state := k.store.State()
	state.Rows[3].Body[len(state.Rows[3].Body)-4] ^= 1
	k.store.SetState(state)
	refused(status.NotVerified, "rewritten: record 4 does not follow from record 3", live("verify")...)
	refused(status.NotVerified, "the audit log was tampered with", live("prove", "3")...)
	refused(status.Failed, "the last of them is 34", live("prove", "35")...)
}

func TestAuditUsage(t *testing.T) {
	k := newAuditKMS(t)
	tests := []struct{ args, want string }{
		{"audit verfy", "did you mean verify?"},
		{"audit list", "--admin is required"},
		{"audit list --admin http://kms.example.com:8001", "over plain HTTP anyone on the way reads the token"},
		{"audit list --admin URL --kind app-key", `--kind: "app-key" is none of`},
		{"audit list --admin URL --since yesterday", `--since: "yesterday" is neither`},
		{"audit list --admin URL x", `unexpected argument "x"`},
		{"audit verify --admin URL", "give --root-ca, --dir or --info"},
		{"audit verify --admin URL --root-ca a --dir b", "give one of --root-ca, --dir and --info"},
		{"audit verify --file a --admin URL --root-ca b", "--file or --admin, not both"},
		{"audit verify --root-ca ROOT", "--admin is required"},
		{"audit export --admin URL --root-ca ROOT", "--out is required"},
		{"audit prove --admin URL --root-ca ROOT", "give the number of one record"},
		{"audit prove seven --admin URL --root-ca ROOT", `"seven" is not the number of a record`},
		{"audit prove 7 --file a --root-ca ROOT", "--file is verified alone"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			args := strings.Fields(strings.NewReplacer("URL", k.url, "ROOT", k.rootCA).Replace(tt.args))
			code, _, stderr := run(t.Context(), args...)
			if code != status.Usage || !strings.Contains(stderr, tt.want) {
				t.Errorf("kmsctl %s = %d, %q, want %d: %s", tt.args, code, stderr, status.Usage, tt.want)
			}
		})
	}
	code, _, stderr := run(t.Context(), "audit", "verify", "--file", filepath.Join(t.TempDir(), "none"), "--root-ca", k.rootCA)
	if code != status.Failed || !strings.Contains(stderr, "no such file") {
		t.Errorf("verify of no file = %d, %q, want %d", code, stderr, status.Failed)
	}
}

func TestAuditCompletes(t *testing.T) {
	code, out, _ := run(t.Context(), "__complete", "audit", "list", "--kind", "")
	for _, k := range audit.Kinds() {
		if code != status.OK || !strings.Contains(out, fmt.Sprintln(k)) {
			t.Errorf("completion of --kind has no %s", k)
		}
	}
}
