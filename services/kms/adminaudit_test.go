package kms_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/mod/sumdb/tlog"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
	"teekms/internal/keys"
	"teekms/services/kms"
)

// auditWorld is an Admin service over a log with n records.
type auditWorld struct {
	store   *audittest.Store
	roots   *keys.Roots
	address string
	clients map[string]kmsv1connect.AdminClient
}

func newAuditWorld(t *testing.T, n int) *auditWorld {
	t.Helper()
	w := &auditWorld{store: audittest.NewStore(), roots: vectorRoots(t)}
	id, err := audit.IdentityOf(w.roots)
	if err != nil {
		t.Fatal(err)
	}
	l := audittest.NewLog(t, w.store, func(c *audit.Config) { c.Identity = id })
	for i := range n {
		if _, err := l.Append(t.Context(), audit.Event{Kind: audit.Start, Fields: map[string]string{"n": fmt.Sprint(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	cr := newCredentials(t, kms.CredentialsConfig{Token: keys.NewSecret([]byte(adminToken))})
	w.address = start(t, adminMux(t, kms.AdminConfig{Images: &cleared{}, Audit: l}, cr), nil)
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	client := &http.Client{Transport: bearer{tr}}
	w.clients = map[string]kmsv1connect.AdminClient{
		"connect json": kmsv1connect.NewAdminClient(client, "http://"+w.address, connect.WithProtoJSON()),
		"grpc":         kmsv1connect.NewAdminClient(client, "http://"+w.address, connect.WithGRPC()),
	}
	return w
}

func TestListAudit(t *testing.T) {
	w := newAuditWorld(t, 1100)
	rows := w.store.State().Rows
	tests := []struct {
		name     string
		from     uint64
		limit    uint32
		wantRows int
	}{
		{"the usual page", 0, 0, 256},
		{"a few", 7, 3, 3},
		{"the most", 0, 1024, 1024},
		{"more than the most", 0, 1 << 31, 1024},
		{"the end", 1099, 10, 1},
		{"nothing yet", 1100, 10, 0},
	}
	for protocol, client := range w.clients {
		for _, tt := range tests {
			t.Run(protocol+"/"+tt.name, func(t *testing.T) {
				res, err := client.ListAudit(t.Context(), &kmsv1.ListAuditRequest{From: tt.from, Limit: tt.limit})
				if err != nil || res.GetSize() != 1100 || len(res.GetRecords()) != tt.wantRows {
					t.Fatalf("ListAudit() = %d records of %d, %v, want %d of 1100", len(res.GetRecords()), res.GetSize(), err, tt.wantRows)
				}
				for i, r := range res.GetRecords() {
					if want := rows[tt.from+uint64(i)]; r.GetSeq() != want.Seq || string(r.GetBody()) != string(want.Body) {
						t.Fatalf("record %d is %d, %x", i, r.GetSeq(), r.GetBody())
					}
				}
			})
		}
	}
	status, body := adminPost(t, "http://"+w.address+"/prpc/Admin.ListAudit?json", `{"from": 2, "limit": 1}`)
	if want := fmt.Sprintf(`{"records":[{"seq":2,"body":"%x"}],"size":1100}`, rows[2].Body); status != http.StatusOK || body != want {
		t.Errorf("ListAudit() = %d %s, want 200 %s", status, body, want)
	}
}

// TestAuditIsProved checks everything that the service says of its log, as a
// client does who has the root certificate alone.
func TestAuditIsProved(t *testing.T) {
	w := newAuditWorld(t, 100)
	public, err := x509.ParsePKIXPublicKey(w.roots.CAPublic())
	if err != nil {
		t.Fatal(err)
	}
	for protocol, client := range w.clients {
		t.Run(protocol, func(t *testing.T) {
			signed, err := client.GetAuditCheckpoint(t.Context(), &kmsv1.GetAuditCheckpointRequest{})
			if err != nil {
				t.Fatal(err)
			}
			v, err := audit.VerifyKey(public.(*ecdsa.PublicKey), w.roots.CAPublic(), signed.GetKey(), signed.GetKeySignature())
			if err != nil {
				t.Fatal(err)
			}
			c, err := audit.OpenCheckpoint(signed.GetCheckpoint(), v)
			if err != nil || c.Size != 100 {
				t.Fatalf("checkpoint = %v, %v", c, err)
			}
			proof, err := client.ProveAudit(t.Context(), &kmsv1.ProveAuditRequest{Seq: 33})
			if err != nil || proof.GetTreeSize() != 100 {
				t.Fatalf("ProveAudit() = %v, %v", proof, err)
			}
			if err := tlog.CheckRecord(hashesOf(proof.GetProof()), 100, c.Root, 33, audit.Hash(proof.GetRecord().GetBody())); err != nil {
				t.Error(err)
			}
			var old audit.Tree
			for _, row := range w.store.State().Rows[:40] {
				old.Append(audit.Hash(row.Body))
			}
			consistency, err := client.ProveAuditConsistency(t.Context(), &kmsv1.ProveAuditConsistencyRequest{OldSize: 40})
			if err != nil || consistency.GetNewSize() != 100 {
				t.Fatalf("ProveAuditConsistency() = %v, %v", consistency, err)
			}
			if err := tlog.CheckTree(hashesOf(consistency.GetProof()), 100, c.Root, 40, old.Root()); err != nil {
				t.Error(err)
			}
		})
	}
}

func hashesOf(raw [][]byte) []tlog.Hash {
	out := make([]tlog.Hash, len(raw))
	for i := range raw {
		copy(out[i][:], raw[i])
	}
	return out
}

func TestAuditRefusals(t *testing.T) {
	w := newAuditWorld(t, 10)
	good := w.store.State()
	tampered, rolledBack := w.store.State(), audittest.State{}
	tampered.Head[30]++
	const beyond = "beyond the end of the audit log: it has 10 records"
	tests := []struct {
		name  string
		state audittest.State
		call  func(c kmsv1connect.AdminClient) error
		code  connect.Code
		text  string
	}{
		{"a record after the end", good, listAudit(t, 11), connect.CodeOutOfRange, beyond},
		{"the proof of a record that is not there", good, proveAudit(t, 10, 0), connect.CodeOutOfRange, beyond},
		{"a record after the tree", good, proveAudit(t, 5, 5), connect.CodeOutOfRange, beyond},
		{"a tree that is not there yet", good, proveAudit(t, 0, 11), connect.CodeOutOfRange, beyond},
		{"an endless tree", good, proveAudit(t, 0, 1<<63), connect.CodeOutOfRange, beyond},
		{"no older tree", good, proveTree(t, 0, 5), connect.CodeOutOfRange, beyond},
		{"an older tree that is newer", good, proveTree(t, 6, 5), connect.CodeOutOfRange, beyond},
		{"a newer tree that is not there", good, proveTree(t, 6, 1<<63), connect.CodeOutOfRange, beyond},
		{"a head that was changed", tampered, listAudit(t, 0), connect.CodeDataLoss, "the audit log was tampered with"},
		{"an empty database", rolledBack, checkpoint(t), connect.CodeDataLoss, "the audit log was rolled back"},
	}
	for protocol, client := range w.clients {
		for _, tt := range tests {
			t.Run(protocol+"/"+tt.name, func(t *testing.T) {
				w.store.SetState(tt.state)
				err := tt.call(client)
				if e := new(connect.Error); !asConnect(err, &e) || e.Code() != tt.code || e.Message() != tt.text {
					t.Errorf("error = %v, want %v: %s", err, tt.code, tt.text)
				}
			})
		}
	}
	w.store.SetState(good)
	status, body := adminPost(t, "http://"+w.address+"/prpc/Admin.ProveAudit?json", `{"seq": 10}`)
	if want := `{"error": "` + beyond + `"}`; status != http.StatusBadRequest || body != want {
		t.Errorf("ProveAudit() = %d %s, want 400 %s", status, body, want)
	}
	w.store.Break(fmt.Errorf("dial postgres://u:secret@h: refused"))
	status, body = adminPost(t, "http://"+w.address+"/prpc/Admin.GetAuditCheckpoint?json", `{}`)
	if status != http.StatusBadRequest || strings.Contains(body, "secret") || !strings.Contains(body, "internal error") {
		t.Errorf("GetAuditCheckpoint() of a broken database = %d %s, want an internal error without its cause", status, body)
	}
	r, err := http.Post("http://"+w.address+"/prpc/Admin.ListAudit?json", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusUnauthorized {
		t.Errorf("ListAudit() without a token = %d, want 401", r.StatusCode)
	}
}

func asConnect(err error, to **connect.Error) bool {
	e, ok := err.(*connect.Error) //nolint:errorlint // what the client returns
	*to = e
	return ok
}

func listAudit(t *testing.T, from uint64) func(kmsv1connect.AdminClient) error {
	return func(c kmsv1connect.AdminClient) error {
		_, err := c.ListAudit(t.Context(), &kmsv1.ListAuditRequest{From: from})
		return err
	}
}

func proveAudit(t *testing.T, seq, size uint64) func(kmsv1connect.AdminClient) error {
	return func(c kmsv1connect.AdminClient) error {
		_, err := c.ProveAudit(t.Context(), &kmsv1.ProveAuditRequest{Seq: seq, TreeSize: size})
		return err
	}
}

func proveTree(t *testing.T, before, now uint64) func(kmsv1connect.AdminClient) error {
	return func(c kmsv1connect.AdminClient) error {
		_, err := c.ProveAuditConsistency(t.Context(), &kmsv1.ProveAuditConsistencyRequest{OldSize: before, NewSize: now})
		return err
	}
}

func checkpoint(t *testing.T) func(kmsv1connect.AdminClient) error {
	return func(c kmsv1connect.AdminClient) error {
		_, err := c.GetAuditCheckpoint(t.Context(), &kmsv1.GetAuditCheckpointRequest{})
		return err
	}
}

func TestAuditWithoutADatabase(t *testing.T) {
	cr := newCredentials(t, kms.CredentialsConfig{Token: keys.NewSecret([]byte(adminToken))})
	address := start(t, adminMux(t, kms.AdminConfig{Images: &cleared{}}, cr), nil)
	for _, method := range []string{"ListAudit", "GetAuditCheckpoint", "ProveAudit", "ProveAuditConsistency"} {
		status, body := adminPost(t, "http://"+address+"/prpc/Admin."+method+"?json", "{}")
		if want := `{"error": "the database is not open"}`; status != http.StatusBadRequest || body != want {
			t.Errorf("%s() = %d %s, want 400 %s", method, status, body, want)
		}
	}
}
