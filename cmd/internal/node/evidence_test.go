package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/attest"
	"teekms/internal/authz"
	"teekms/internal/config"
)

// complete returns a node with a software TD and a bootstrapped key directory.
// lines go below [core].
func complete(t *testing.T, lines string) *Node {
	t.Helper()
	dir := t.TempDir()
	td := filepath.Join(dir, "td")
	cfg, err := config.Parse("kms.toml", fmt.Appendf(nil, `
log.level = "error"
[core]
cert_dir = %q
%s
[core.onboard]
auto_bootstrap_domain = "kms.example.com"
[core.attestation]
provider = "simulator"
insecure_allow_external_trust_anchors = true
simulator.dir = %q
root_ca.tdx = %q
`, filepath.Join(dir, "certs"), lines, td, filepath.Join(td, "root-ca.pem")), nil)
	if err != nil {
		t.Fatal(err)
	}
	n, err := Program{Name: "test"}.open(t.Context(), "kms.toml", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	if err := n.Onboard(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

// attester counts what it is asked for, and changes what it answers.
type attester struct {
	attest.Attester
	asked  int
	change func(attest.ReportData) attest.ReportData
	spoil  func(*attest.Evidence)
	err    error
}

func (a *attester) Attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	a.asked++
	if a.err != nil {
		return nil, a.err
	}
	if a.change != nil {
		rd = a.change(rd)
	}
	e, err := a.Attester.Attest(ctx, rd)
	if err == nil && a.spoil != nil {
		a.spoil(e)
	}
	return e, err
}

// through puts an attester in front of that of n.
func through(n *Node, a *attester) *attester {
	a.Attester = n.attestation.attester
	n.attestation.attester = a
	return a
}

// TestKeyIsQuotedOnce renews the certificate of one key: all renewals carry the
// same Evidence.
func TestKeyIsQuotedOnce(t *testing.T) {
	n := complete(t, "")
	a := through(n, &attester{})
	e := NewCertificateEvidence(n)
	var values [][]byte
	for range 3 {
		extensions, err := e.Extensions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c, err := n.Keys.RenewRPC(t.Context(), extensions...)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range c.Leaf.Extensions {
			if len(extensions) == 1 && x.Id.Equal(extensions[0].Id) {
				values = append(values, x.Value)
			}
		}
	}
	if a.asked != 1 || len(values) != 3 {
		t.Fatalf("%d quotes for three certificates, %d of them with Evidence, want 1 and 3", a.asked, len(values))
	}
	for _, v := range values[1:] {
		if !cmp.Equal(v, values[0]) {
			t.Error("a renewed certificate carries other Evidence")
		}
	}
}

func TestNoEvidenceWhereItIsSwitchedOff(t *testing.T) {
	n := complete(t, "attest_rpc_cert = false")
	a := through(n, &attester{})
	if got, err := NewCertificateEvidence(n).Extensions(t.Context()); got != nil || err != nil || a.asked != 0 {
		t.Errorf("Extensions() = %v, %v after %d quotes, want nothing", got, err, a.asked)
	}
}

func TestEvidenceThatIsRefused(t *testing.T) {
	const hint = "; core.attest_rpc_cert = false serves without Evidence"
	other := func(attest.ReportData) attest.ReportData { return attest.RATLSReportData([]byte("another key")) }
	tests := []struct {
		name                  string
		attester              attester
		wantOfKey, wantOfSelf string
	}{
		{"no attester", attester{err: attest.ErrNoAttester}, "no attester found" + hint, "no attester found"},
		{
			"other report data",
			attester{change: other},
			"the quote of this machine does not bind what was asked for" + hint,
			"the quote of this machine does not bind what was asked for",
		},
		{
			"a quote that is none",
			attester{spoil: func(e *attest.Evidence) { e.Quote = e.Quote[:100] }},
			"reading the quote of this machine: ", "reading the quote of this machine: ",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := complete(t, "")
			through(n, &tt.attester)
			e := NewCertificateEvidence(n)
			_, err := e.Extensions(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.wantOfKey) || !strings.HasSuffix(err.Error(), hint) {
				t.Errorf("Extensions() = %v, want %q", err, tt.wantOfKey)
			}
			// That text would take the place of the hint.
			if errors.Is(err, attest.ErrNoAttester) {
				t.Errorf("Extensions() = %v, want no ErrNoAttester", err)
			}
			if _, err := n.Self(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "appraising this KMS itself: "+tt.wantOfSelf) {
				t.Errorf("Self() = %v, want %q", err, tt.wantOfSelf)
			}
			// A failure is not kept.
			tt.attester.err, tt.attester.change, tt.attester.spoil = nil, nil, nil
			if _, err := e.Extensions(t.Context()); err != nil {
				t.Errorf("Extensions() once the attester works = %v, want no error", err)
			}
		})
	}
}

func TestSelf(t *testing.T) {
	n := complete(t, "")
	a := through(n, &attester{})
	info, err := n.Self(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(info.AppID) != 20 || info.TCBStatus != "UpToDate" || info.TEEVariant != "dstack-tdx" {
		t.Errorf("Self() = %+v, want a TD that is up to date", info)
	}
	for name, tt := range map[string]struct {
		spoil func(*attest.Evidence)
		want  string
	}{
		"log cut off":         {func(e *attest.Evidence) { e.EventLog = []byte("[]") }, "event log: RTMR3 replays to "},
		"log that is none":    {func(e *attest.Evidence) { e.EventLog = []byte("{") }, "event log: event log is not JSON"},
		"no log":              {func(e *attest.Evidence) { e.EventLog = nil }, "reading the event log: "},
		"signature spoiled":   {func(e *attest.Evidence) { e.Quote[640] ^= 1 }, "quote signature: "},
		"quotes switched off": {nil, "core.onboard.quote_enabled is false"},
	} {
		t.Run(name, func(t *testing.T) {
			a.spoil = tt.spoil
			if tt.spoil == nil {
				n.attestation.attester = nil
				t.Cleanup(func() { n.attestation.attester = a })
			}
			if _, err := n.Self(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "appraising this KMS itself: "+tt.want) {
				t.Errorf("Self() = %v, want %q", err, tt.want)
			}
		})
	}
}

// TestAuthorityOfAProgramWithoutChain decides nothing, and says why in the log's
// words.
func TestAuthorityOfAProgramWithoutChain(t *testing.T) {
	n := complete(t, "")
	n.Config.Core.AuthAPI.Type = config.AuthEthereum
	authority, err := n.Authority()
	if err != nil {
		t.Fatal(err)
	}
	info, err := n.Self(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, err := authority.Authorize(t.Context(), authz.Request{Subject: authz.KMS, BootInfo: info})
	if d.Allowed || err == nil || !strings.Contains(err.Error(), "this program cannot read the contract") {
		t.Errorf("Authorize() = %v, %v, want a refusal to decide", d, err)
	}
}
