package simtd_test

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/abi"
	"github.com/google/go-tdx-guest/pcs"
	pb "github.com/google/go-tdx-guest/proto/tdx"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

// The fields are read by go-tdx-guest, which knows nothing of our layout.
func TestQuoteHasItsFieldsWhereTheyBelong(t *testing.T) {
	set := simtd.Measurements{
		MRTD: attest.Measurement{1}, MRSeam: attest.Measurement{2}, MRConfigID: attest.Measurement{3},
		MROwner: attest.Measurement{4}, MROwnerConfig: attest.Measurement{5}, Attributes: simtd.AttributeDebug, TEETCBSVN: [16]byte{9, 1, 2},
	}
	td := open(t, simtd.Config{Measurements: set})
	rd := attest.RATLSReportData([]byte("key"))
	ev, err := td.Attest(t.Context(), rd)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := abi.QuoteToProto(ev.Quote)
	if err != nil {
		t.Fatal(err)
	}
	q, ok := parsed.(*pb.QuoteV4)
	if !ok {
		t.Fatalf("QuoteToProto() is a %T, want version 4", parsed)
	}
	body, rtmr, report := q.GetTdQuoteBody(), td.RTMR(), rd.Bytes()
	for name, f := range map[string]struct{ got, want []byte }{
		"MRTD":          {body.GetMrTd(), set.MRTD[:]},
		"MRSEAM":        {body.GetMrSeam(), set.MRSeam[:]},
		"MRSIGNERSEAM":  {body.GetMrSignerSeam(), make([]byte, 48)},
		"MRCONFIGID":    {body.GetMrConfigId(), set.MRConfigID[:]},
		"MROWNER":       {body.GetMrOwner(), set.MROwner[:]},
		"MROWNERCONFIG": {body.GetMrOwnerConfig(), set.MROwnerConfig[:]},
		"RTMR0":         {body.GetRtmrs()[0], rtmr[0][:]},
		"RTMR1":         {body.GetRtmrs()[1], rtmr[1][:]},
		"RTMR2":         {body.GetRtmrs()[2], rtmr[2][:]},
		"RTMR3":         {body.GetRtmrs()[3], rtmr[3][:]},
		"REPORTDATA":    {body.GetReportData(), report[:]},
		"TD_ATTRIBUTES": {body.GetTdAttributes(), []byte{1, 0, 0, 0, 0, 0, 0, 0}},
		"XFAM":          {body.GetXfam(), []byte{0xe7, 0x02, 0x06, 0, 0, 0, 0, 0}},
		"TEE_TCB_SVN":   {body.GetTeeTcbSvn(), set.TEETCBSVN[:]},
	} {
		if !slices.Equal(f.got, f.want) {
			t.Errorf("%s = %x, want %x", name, f.got, f.want)
		}
	}
}

func TestPCKCertificateHasIntelsProfile(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	td := open(t, simtd.Config{Now: func() time.Time { return now }, Measurements: simtd.Measurements{FMSPC: [6]byte{0x90, 0xc0, 0x6f}}})
	leaf := td.PCK()
	if got := len(leaf.Extensions); got != 6 {
		t.Errorf("%d extensions, want 6", got)
	}
	if got, want := leaf.Subject.ToRDNSequence().String(), "CN=Intel SGX PCK Certificate,O=Intel Corporation,L=Santa Clara,ST=CA,C=US"; got != want && !strings.Contains(got, "CN=Intel SGX PCK Certificate") {
		t.Errorf("Subject = %q, want %q", got, want)
	}
	ext, err := pcs.PckCertificateExtensions(leaf)
	if err != nil {
		t.Fatal(err)
	}
	if ext.FMSPC != "90c06f000000" || len(ext.PPID) != 32 || ext.PPID == strings.Repeat("0", 32) || ext.PCEID != "0000" || ext.TCB.PCESvn != 13 {
		t.Errorf("SGX extension = %+v, want FMSPC 90c06f000000, a PPID, PCEID 0000, PCESVN 13", ext)
	}
	if leaf.NotBefore.After(now) || leaf.NotAfter.Before(now.AddDate(6, 11, 0)) {
		t.Errorf("valid from %v to %v, want seven years", leaf.NotBefore, leaf.NotAfter)
	}
	if root := td.Root(); root.NotAfter.Year() != 2049 || root.CheckSignatureFrom(root) != nil {
		t.Errorf("root is valid to %v, signed by itself: %v", root.NotAfter, root.CheckSignatureFrom(root))
	}
}

func TestEditCertificateSeesEachTemplateOnce(t *testing.T) {
	var seen []string
	expired := time.Now().Add(-time.Hour)
	td := open(t, simtd.Config{EditCertificate: func(which string, c *x509.Certificate) {
		seen = append(seen, which)
		if which == simtd.CertificatePCK {
			c.NotAfter = expired
		}
	}})
	if want := []string{simtd.CertificateRoot, simtd.CertificatePCKCA, simtd.CertificatePCK, simtd.CertificateTCBSigner}; !slices.Equal(seen, want) {
		t.Errorf("edited %v, want %v", seen, want)
	}
	quote, err := td.Quote([64]byte{}, simtd.Shape{})
	if err != nil {
		t.Fatal(err)
	}
	if err := secondOpinion(t, td, quote, time.Now()); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("RawTdxQuote(expired PCK) = %v, want expired", err)
	}
}

func TestExtendMovesOneRegister(t *testing.T) {
	td := open(t, simtd.Config{})
	before := td.RTMR()
	if err := td.Extend("measured", []byte{1}); err != nil {
		t.Fatal(err)
	}
	after := td.RTMR()
	if after[3] == before[3] || [3]attest.Measurement(after[:3]) != [3]attest.Measurement(before[:3]) {
		t.Errorf("registers went from %x to %x, want only RTMR3 to move", before, after)
	}
	if err := td.ExtendEvent(eventlog.Event{IMR: 1, Type: 4, Digest: make([]byte, 48)}); err != nil {
		t.Fatal(err)
	}
	if td.RTMR()[1] == after[1] {
		t.Error("RTMR1 did not move")
	}
	for want, e := range map[string]eventlog.Event{
		"extending RTMR: digest of 0 bytes, want 48":             {IMR: 1, Type: 4},
		"extending RTMR: imr is 4, want 0 to 3":                  {IMR: 4, Type: 4},
		"extending RTMR: runtime event on imr 0, want 3":         {IMR: 0, Type: eventlog.RuntimeEventType},
		"extending RTMR: event of 1025 bytes, want at most 1024": {IMR: 3, Type: eventlog.RuntimeEventType, Name: strings.Repeat("x", 1025)},
	} {
		if err := td.ExtendEvent(e); err == nil || err.Error() != want {
			t.Errorf("ExtendEvent() = %v, want %q", err, want)
		}
	}
	if log, err := td.EventLog().Replay(); err != nil || log != td.RTMR() {
		t.Errorf("Replay() = %x, %v, want %x", log, err, td.RTMR())
	}
}

func TestEvidenceIsOfOneMoment(t *testing.T) {
	td := open(t, simtd.Config{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 50 {
			if err := td.Extend("tick", nil); err != nil {
				t.Error(err)
			}
		}
	})
	for range 50 {
		ev, err := td.Attest(t.Context(), attest.NoReportData())
		if err != nil {
			t.Fatal(err)
		}
		log, err := eventlog.Parse(ev.EventLog)
		if err != nil {
			t.Fatal(err)
		}
		q, err := tdx.ParseQuote(ev.Quote)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := log.Replay(); err != nil || got != q.RTMRs() {
			t.Fatalf("Replay() = %x, %v, want the quote's %x", got, err, q.RTMRs())
		}
	}
	wg.Wait()
}

func TestIdentityOfTheDefaultGuest(t *testing.T) {
	td := open(t, simtd.Config{})
	m := td.Measurements()
	id, err := td.EventLog().Identity()
	if err != nil || !slices.Equal(id.AppID, m.ComposeHash[:20]) || !slices.Equal(id.ComposeHash, m.ComposeHash) || len(id.InstanceID) != 20 ||
		!slices.Equal(id.OSImageHash, m.OSImageHash) || string(id.KeyProvider) != `{"name":"none","id":""}` {
		t.Errorf("Identity() = %+v, %v, want that of %+v", id, err, m)
	}
	if !strings.Contains(td.VMConfig(), `"os_image_hash":"`) {
		t.Errorf("VMConfig() = %s, want the hash of the image in it", td.VMConfig())
	}
}

func TestAttestObeysItsContext(t *testing.T) {
	td := open(t, simtd.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := td.Attest(ctx, attest.NoReportData()); !errors.Is(err, context.Canceled) {
		t.Errorf("Attest(canceled) = %v, want %v", err, context.Canceled)
	}
	if _, err := td.Collateral(ctx, td.Measurements().FMSPC, tdx.PlatformCA); !errors.Is(err, context.Canceled) {
		t.Errorf("Collateral(canceled) = %v, want %v", err, context.Canceled)
	}
}

func BenchmarkAttest(b *testing.B) {
	td, err := simtd.Open(simtd.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := td.Attest(b.Context(), attest.NoReportData()); err != nil {
			b.Fatal(err)
		}
	}
}
