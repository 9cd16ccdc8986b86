package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

func testWebUIFacts(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	net := newNetwork(t, s.URL("http"))
	real := get(t, http.DefaultClient, s.URL("http")+"/prpc/Onboard.GetAttestationInfo?json")
	var info map[string]any
	if err := json.Unmarshal([]byte(real.body), &info); err != nil {
		t.Fatalf("GetAttestationInfo = %q, want JSON: %v", real.body, err)
	}

	p := b.open(t, net.URL)
	checkFacts(p, info)

	tests := []struct {
		name   string
		change map[string]any
		want   string
	}{
		{"software", nil, "Simulated: not an Intel hardware root"},
		{"software that claims to be Intel's", map[string]any{"trust_root_is_intel": true}, "Simulated: not an Intel hardware root"},
		{"hardware under Intel's root", map[string]any{"provider": "configfs", "trust_root_is_intel": true, "insecure_settings": []string{}}, "Intel’s trust root"},
		{"hardware under another root", map[string]any{"provider": "guest-agent"}, "Not an Intel hardware root"},
		{"a root that is not said", map[string]any{"provider": "guest-agent", "trust_root_is_intel": "yes"}, "Not an Intel hardware root"},
		{"quotes switched off", map[string]any{"provider": "none", "mrtd": "0x", "rtmrs": []string{}, "report_data": "0x"}, "No evidence"},
		{"markup in a fact", map[string]any{"provider": "<b id=injected>x</b>", "site_name": "<script>1</script>"}, "Not an Intel hardware root"},
	}
	for i, tt := range tests {
		changed := map[string]any{}
		for k, v := range info {
			changed[k] = v
		}
		for k, v := range tt.change {
			changed[k] = v
		}
		body, err := json.Marshal(changed)
		if err != nil {
			t.Fatal(err)
		}
		net.fault("GetAttestationInfo", answerWith(200, "application/json", string(body)))
		p.load(net.URL)
		if got := p.text("verdict"); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: the page says %q, want %q", tt.name, got, tt.want)
		}
		if eval[bool](p, `document.getElementById('injected') !== null`) {
			t.Errorf("%s: markup of a fact became an element", tt.name)
		}
		if i == 2 || i == 5 {
			p.audit(fmt.Sprintf("1-start-facts-%d", i))
		}
	}
	testFactsFailure(p, net)
}

// checkFacts compares the panel with what the service answers to others.
func checkFacts(p *tab, info map[string]any) {
	p.t.Helper()
	shown := eval[map[string]string](p, `Object.fromEntries([...document.querySelectorAll('#facts dl > div')]
		.map((d) => [d.querySelector('dt').textContent, d.querySelector('dd').textContent]))`)
	bare := func(v any) string { return strings.TrimPrefix(v.(string), "0x") }
	rtmrs := info["rtmrs"].([]any)
	want := map[string]string{
		"Provider": "simulator", "Trust root": "other", "Trust root SHA-256": bare(info["trust_root_sha256"]),
		"MRTD": bare(info["mrtd"]), "Device ID": bare(info["device_id"]), "Report data": bare(info["report_data"]),
		"RTMR0": bare(rtmrs[0]), "RTMR1": bare(rtmrs[1]), "RTMR2": bare(rtmrs[2]), "RTMR3": bare(rtmrs[3]),
		"Aggregated measurement": bare(info["mr_aggregated"]),
	}
	for term, value := range want {
		if shown[term] != value || value == "" {
			p.t.Errorf("%s = %q, want %q", term, shown[term], value)
		}
	}
	settings := p.text("facts")
	for _, name := range info["insecure_settings"].([]any) {
		if !strings.Contains(settings, name.(string)) {
			p.t.Errorf("the panel does not name the setting %s", name)
		}
	}
}

func testFactsFailure(p *tab, net *network) {
	p.t.Helper()
	net.fault("GetAttestationInfo", answerWith(400, "application/json", `{"error":"tappd socket not found"}`))
	p.load(net.URL)
	if got := p.text("verdict"); !strings.Contains(got, "No attestation facts") || !strings.Contains(got, "tappd socket not found") {
		p.t.Errorf("the page says %q, want the reason why there are no facts", got)
	}
	p.audit("1-start-no-facts")
	net.heal()
	p.do(chromedp.Click(chromedp.CSS("#facts button")))
	p.announced("The attestation facts are shown.")
	p.wantFocus("facts-title")
}
