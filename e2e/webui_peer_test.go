package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"
)

// testWebUIOnboard makes a replica of a running KMS by keyboard and mouse.
func testWebUIOnboard(t *testing.T, b *browserTest) {
	source := newKMS(t, "", devAuthority)
	source.fill(t, exampleDomain)
	_, client := source.serve(t, exampleDomain)
	k := newReplica(t, source, devAuthority)
	s := &setup{k, k.onboarding(t, "dstack-kms")}
	net := newNetwork(t, s.URL("http"))
	p := b.open(t, net.URL)

	p.press(kb.Tab)
	p.tabTo("onboard-peer")
	p.press(kb.Enter)
	p.view("domain")
	p.wantFocus("source")
	p.audit("2-peer")
	p.click("back")
	p.view("start")
	p.wantFocus("onboard-peer")
	p.press(" ")
	p.fill("source", " "+source.URL("https")+"/ ")
	p.fill("domain", replicaDomain)

	release := make(chan struct{})
	net.fault("Onboard", holdUntil(release))
	p.press(kb.Enter)
	p.view("progress")
	p.wantFocus("progress-title")
	if got := p.text("progress-title"); got != "Fetching the root keys" {
		t.Errorf("the progress is titled %q, want Fetching the root keys", got)
	}
	if got := p.text("progress-source"); got != source.URL("https")+"/" {
		t.Errorf("the progress is about %q, want the URL of the source", got)
	}
	p.audit("3-peer-progress")
	close(release)
	net.heal()

	p.view("replica")
	p.wantFocus("replica-title")
	p.announced("The root keys of the source were taken over.")
	p.audit("4-replica")
	if got, want := p.content("value-k256_pubkey"), fmt.Sprint("0x", peerMeta(t, client, source)["k256_pubkey"]); got != want {
		t.Errorf("the page shows %q, want the key of the source, %q", got, want)
	}
	p.click("finish")
	p.view("ended")
	if got := p.text("ended-host"); got != replicaDomain {
		t.Errorf("what to do next is about %q, want %q", got, replicaDomain)
	}
	s.checkEnded(t)
}

// testWebUIOnboardFailed has URLs and sources with something wrong about them.
func testWebUIOnboardFailed(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	net := newNetwork(t, s.URL("http"))
	p := b.open(t, net.URL)
	p.click("onboard-peer")
	p.view("domain")
	p.fill("domain", replicaDomain)
	for _, tt := range []struct{ url, want string }{
		{"", "Enter the URL of the source KMS."},
		{"http://peer.example.com", "The URL must begin with https, as in the example."},
		{"peer.example.com:9100", "The URL must begin with https, as in the example."},
		{"https://peer example.com", "A URL has no spaces."},
		{"https://peer.example.com/?x", "source_url: must not have a query or a fragment"}, // the service's own
	} {
		p.fill("source", tt.url)
		p.press(kb.Enter)
		p.until(fmt.Sprintf(`document.getElementById('source-error').textContent === %q`, tt.want))
		p.wantFocus("source")
	}
	if got := p.describedField("URL of the source KMS"); !strings.HasPrefix(got, "source_url: must not have a query") {
		t.Errorf("the field is described as %q, want the error first", got)
	}
	p.audit("2-peer-refused")

	const refused = "source KMS unreachable: the connection was refused"
	p.fill("source", "https://127.0.0.1:1")
	p.click("submit")
	p.view("failed")
	p.wantFocus("failed-title")
	p.announced("Onboarding failed. " + refused)
	if got := p.text("failed-text"); got != refused {
		t.Errorf("the page says %q, want %q", got, refused)
	}
	p.audit("3-peer-failed")

	net.fault("Onboard", answerWith(200, "application/json", `{"k256_pubkey":"0x02"}`))
	p.click("again")
	p.until(`document.getElementById('failed-text').textContent === 'The service answered, but k256_pubkey is missing or is not a key.'`)
	if got := p.text("failed-advice"); !strings.Contains(got, "Trying again is safe") {
		t.Errorf("the page advises %q, want that trying again is safe", got)
	}

	// The other way is still open, and asks for no URL.
	p.click("change")
	p.view("domain")
	p.wantFocus("source")
	p.click("back")
	p.click("bootstrap")
	p.view("domain")
	p.wantFocus("domain")
	p.click("submit")
	p.view("record")
}
