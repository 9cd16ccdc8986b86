package guestagent

import (
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"teekms/internal/attest"
	"teekms/internal/attest/guestagent/guestagenttest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

// FuzzAnswers decodes an agent's answers as those to every method.
func FuzzAnswers(f *testing.F) {
	td, err := simtd.Open(simtd.Config{Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	request := `{"report_data":"` + hex.EncodeToString(make([]byte, 64)) + `"}`
	for method, g := range map[string]guestagenttest.Generation{
		"/Attest": guestagenttest.Current, "/GetQuote": guestagenttest.WithoutAttest, "/Info": guestagenttest.Current,
		"/prpc/Tappd.RawQuote": guestagenttest.Tappd,
	} {
		w := httptest.NewRecorder()
		guestagenttest.Handler(td, g).ServeHTTP(w, httptest.NewRequest(http.MethodPost, method+"?json", strings.NewReader(request)))
		if w.Code != http.StatusOK {
			f.Fatalf("%s = %d %s", method, w.Code, w.Body)
		}
		f.Add(w.Body.Bytes())
	}
	f.Add([]byte(`{"attestation":"0000","quote":"00","event_log":"[]","vm_config":{},"os_image_hash":"0x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		zeros := attest.NoReportData()
		for _, decode := range []func([]byte, attest.ReportData) (*attest.Evidence, error){decodeAttestation, decodeQuote} {
			ev, err := decode(b, zeros)
			if err != nil {
				continue
			}
			q, err := tdx.ParseQuote(ev.Quote)
			if err != nil || q.ReportData() != zeros.Bytes() || len(q.Raw) != len(ev.Quote) {
				t.Errorf("decoded a quote of %d bytes over %x, %v", len(ev.Quote), q.ReportData(), err)
			}
		}
		_, _ = decodeInfo(b) // must not panic
	})
}
