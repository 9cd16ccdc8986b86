package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"
)

func testWebUILostReply(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	net := newNetwork(t, s.URL("http"))
	p := b.open(t, net.URL)
	p.click("bootstrap")
	p.view("domain")
	p.fill("domain", "kms.example.com")
	net.fault("Bootstrap", loseReply)
	p.click("submit")
	p.view("failed")
	p.wantFocus("failed-title")
	p.announced("No answer came. The service cannot be reached: the connection failed or was cut.")
	if got := p.text("failed-title"); got != "No answer came" {
		t.Errorf("the page says %q, want No answer came", got)
	}
	if got := p.text("failed-text"); !strings.Contains(got, "cannot be reached") {
		t.Errorf("the page says %q, want that the connection failed", got)
	}
	if got := p.text("failed-advice"); !strings.Contains(got, "Trying again is safe") {
		t.Errorf("the page advises %q, want that trying again is safe", got)
	}
	p.audit("3-reply-lost")

	net.heal()
	p.click("again")
	p.view("record")
	checkRecord(t, parseRecord(t, p.content("whole")))
	p.click("finish")
	p.view("ended")
	s.checkEnded(t)
}

func testWebUIServiceGone(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	p := b.open(t, s.URL("http"))
	p.click("bootstrap")
	p.view("domain")
	p.fill("domain", "kms.example.com")
	if err := s.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	p.click("submit")
	p.view("failed")
	if got := p.text("failed-text"); !strings.Contains(got, "cannot be reached") {
		t.Errorf("the page says %q, want that the service cannot be reached", got)
	}
	p.click("change")
	p.view("domain")
	p.wantFocus("domain")
}

func testWebUILostFinish(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	net := newNetwork(t, s.URL("http"))
	p := b.open(t, net.URL)
	p.click("bootstrap")
	p.view("domain")
	p.fill("domain", "kms.example.com")
	p.press(kb.Enter)
	p.view("record")

	net.fault("Finish", answerWith(400, "application/json", `{"error":"not now, says the service"}`))
	p.click("finish")
	p.until(`document.getElementById('finish-error').checkVisibility()`)
	if got := p.text("finish-error"); got != "not now, says the service" {
		t.Errorf("the page says %q, want the sentence of the refusal", got)
	}
	p.wantFocus("finish")
	p.audit("4-finish-refused")

	// Lost on the way there: the service is still up, and the page does not
	// claim that it ended.
	net.fault("Finish", loseRequest)
	p.click("finish")
	p.until(`document.getElementById('finish-error').textContent.includes('cannot be reached')`)

	net.heal()
	p.click("finish")
	p.view("ended")
	s.checkEnded(t)
}

func testWebUIFailed(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	net := newNetwork(t, s.URL("http"))
	p := b.open(t, net.URL)
	p.click("bootstrap")
	p.view("domain")
	p.fill("domain", "kms.example.com")
	tests := []struct {
		name        string
		fault       fault
		title, want string
	}{
		{
			"a refusal", answerWith(400, "application/json", `{"error":"Permission denied: /etc/kms/certs/root-ca.key"}`),
			"Bootstrap failed", "Permission denied: /etc/kms/certs/root-ca.key",
		},
		{
			"markup in a refusal", answerWith(400, "application/json", `{"error":"<img src=x onerror=alert(1)>"}`),
			"Bootstrap failed", "<img src=x onerror=alert(1)>",
		},
		{
			"a gateway in between", answerWith(502, "text/html", `<h1>Bad Gateway</h1>`),
			"No answer came", "Something other than the onboarding service answered: 502 Bad Gateway.",
		},
		{
			"an error without a reason", answerWith(500, "application/json", `{}`),
			"No answer came", "The service answered 500 Internal Server Error and gave no reason.",
		},
		{
			"half a record", answerWith(200, "application/json", `{"ca_pubkey":"0x30","k256_pubkey":"0x02","quote":"0x"}`),
			"No answer came", "The service answered, but eventlog is missing or is not hex.",
		},
		{
			"null", answerWith(200, "application/json", `null`),
			"No answer came", "The service answered, but ca_pubkey is missing or is not hex.",
		},
	}
	button := "submit"
	for _, tt := range tests {
		net.fault("Bootstrap", tt.fault)
		p.click(button)
		button = "again"
		p.until(fmt.Sprintf(`document.getElementById('failed-text').textContent === %q`, tt.want))
		p.view("failed")
		if got := p.text("failed-title"); got != tt.title {
			t.Errorf("%s: the page says %q, want %q", tt.name, got, tt.title)
		}
		if tt.name == "a refusal" {
			p.audit("3-failed")
		}
	}
	net.heal()
	p.click("again")
	p.view("record")
}
