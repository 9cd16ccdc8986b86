package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// TestWebUI walks through the page of the real onboarding service in a real
// browser. Each case has a service and a browser profile of its own.
func TestWebUI(t *testing.T) {
	browser := chromium(t)
	tests := []struct {
		name string
		run  func(t *testing.T, b *browserTest)
	}{
		{"from Bootstrap to Finish Setup by mouse", testWebUIByMouse},
		{"from Bootstrap to Finish Setup by keyboard alone", testWebUIByKeyboard},
		{"a bad domain is refused beside its field", testWebUIBadDomain},
		{"the setup token is asked for, checked and not kept", testWebUISetupToken},
		{"a lost reply is fetched again with the same request id", testWebUILostReply},
		{"a reload after the bootstrap shows its record again", testWebUIReload},
		{"a service that is gone is said to be gone", testWebUIServiceGone},
		{"a lost reply to Finish is told from a refusal", testWebUILostFinish},
		{"a bootstrap done elsewhere can still be finished", testWebUIAlreadyCompleted},
		{"a failed bootstrap says why and can be tried again", testWebUIFailed},
		{"a replica is onboarded from a peer", testWebUIOnboard},
		{"onboarding from a peer fails and is mended", testWebUIOnboardFailed},
		{"plain HTTP from a remote host works too", testWebUIRemoteHost},
		{"the facts say whose trust root it is", testWebUIFacts},
		{"without scripts the page tells the commands", testWebUIWithoutScripts},
		{"the policy is in force", testWebUIPolicy},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, &browserTest{browser}) })
	}
}

// setup is an onboarding service of its own for one case: the real command over
// an empty key directory, with the software TD.
type setup struct {
	*kmsDir
	*process
}

// beginSetup starts a command; lines of onboard go under [core.onboard].
func beginSetup(t *testing.T, command, onboard string) *setup {
	t.Helper()
	k := newKMS(t, onboard, "")
	return &setup{k, k.onboarding(t, command)}
}

// record is an answer of Bootstrap.
type record struct {
	CAPubkey   string `json:"ca_pubkey"`
	K256Pubkey string `json:"k256_pubkey"`
	Quote      string `json:"quote"`
	Eventlog   string `json:"eventlog"`
}

func parseRecord(t *testing.T, text string) record {
	t.Helper()
	var r record
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatalf("the record is not JSON of four fields: %v\n%.200s", err, text)
	}
	return r
}

// checkRecord checks the shapes: an SPKI of P-256, a compressed point, a quote
// and a log that are there.
func checkRecord(t *testing.T, r record) {
	t.Helper()
	if len(r.CAPubkey) != 2+2*91 || !strings.HasPrefix(r.CAPubkey, "0x30") {
		t.Errorf("ca_pubkey = %.12s… of %d characters, want 0x30… of 184", r.CAPubkey, len(r.CAPubkey))
	}
	if len(r.K256Pubkey) != 2+2*33 {
		t.Errorf("k256_pubkey has %d characters, want 68", len(r.K256Pubkey))
	}
	if len(r.Quote) < 2000 || len(r.Eventlog) < 10 {
		t.Errorf("quote has %d characters and eventlog %d, want both filled", len(r.Quote), len(r.Eventlog))
	}
}

// checkEnded wants the process to have ended well and to have left the eight files.
func (s *setup) checkEnded(t *testing.T) {
	t.Helper()
	if code := s.wait(t, patience); code != 0 {
		t.Errorf("exit status = %d, want 0", code)
	}
	entries, err := os.ReadDir(s.Certs)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	const want = "bootstrap-info.json root-ca.crt root-ca.key root-k256.key rpc.crt rpc.key tmp-ca.crt tmp-ca.key"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("the key directory has %q, want %q", got, want)
	}
}

func testWebUIByMouse(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	net := newNetwork(t, s.URL("http"))
	p := b.open(t, net.URL)
	downloads := t.TempDir()
	p.downloadsTo(downloads)
	p.allowClipboardRead(net.URL)
	p.audit("1-start")

	p.click("bootstrap")
	p.view("domain")
	p.wantFocus("domain")
	p.audit("2-domain")
	p.fill("domain", "kms.example.com")

	release := make(chan struct{})
	net.fault("Bootstrap", holdUntil(release))
	p.click("submit")
	p.view("progress")
	p.wantFocus("progress-title")
	if got := p.text("progress-domain"); got != "kms.example.com" {
		t.Errorf("the progress is about %q, want kms.example.com", got)
	}
	if got := eval[string](p, `document.title`); got != "Making the root keys – Set up this KMS" {
		t.Errorf("the title is %q, want that of the view and of the page", got)
	}
	p.audit("3-progress")
	p.prefers("light", "reduce")
	if n := eval[int](p, `document.getAnimations().length`); n != 0 {
		t.Errorf("%d animations run for a user who asked for none", n)
	}
	close(release)
	net.heal()

	p.view("record")
	p.wantFocus("record-title")
	p.announced("Bootstrap succeeded. The public record is shown.")
	r := parseRecord(t, p.content("whole"))
	checkRecord(t, r)
	p.audit("4-record")
	checkCopies(p, r)
	checkDownload(p, downloads, r)

	p.click("finish")
	p.view("ended")
	p.wantFocus("ended-title")
	p.audit("5-ended")
	if got := p.text("ended-text"); !strings.Contains(got, "The onboarding service has ended") {
		t.Errorf("at the end the page says %q, want that the service has ended", got)
	}
	if got := p.text("view-ended"); !strings.Contains(got, "kmsctl verify --url https://kms.example.com:9100") {
		t.Errorf("what to do next is %q, want kmsctl verify with the domain", got)
	}
	s.checkEnded(t)
}

func checkCopies(p *tab, r record) {
	p.t.Helper()
	values := map[string]string{
		"ca_pubkey": r.CAPubkey, "k256_pubkey": r.K256Pubkey, "quote": r.Quote, "eventlog": r.Eventlog,
	}
	titles := map[string]string{
		"ca_pubkey": "Root CA public key", "k256_pubkey": "Root secp256k1 public key", "quote": "TDX quote", "eventlog": "Event log",
	}
	for name, want := range values {
		p.click("copy-" + name)
		p.announced(titles[name] + ": copied.")
		if got := eval[string](p, `navigator.clipboard.readText()`); got != want {
			p.t.Errorf("after Copy of %s the clipboard has %.40q…, want %.40q…", name, got, want)
		}
		if got := p.content("value-" + name); got != want {
			p.t.Errorf("%s is shown as %.40q…, want %.40q…", name, got, want)
		}
	}
	p.click("copy-all")
	p.announced("The whole answer: copied.")
	if got := parseRecord(p.t, eval[string](p, `navigator.clipboard.readText()`)); got != r {
		p.t.Error("after Copy all the clipboard has another record than the page")
	}
}

func checkDownload(p *tab, dir string, want record) {
	p.t.Helper()
	p.click("download")
	p.announced("Download of bootstrap-response.json started.")
	path := filepath.Join(dir, "bootstrap-response.json")
	deadline := time.Now().Add(patience)
	for {
		text, err := os.ReadFile(path)
		if err == nil && strings.HasSuffix(string(text), "}\n") {
			if got := parseRecord(p.t, string(text)); got != want {
				p.t.Error("the downloaded record is another than the page's")
			}
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("no whole download after %v: %v", patience, err)
		}
		time.Sleep(15 * time.Millisecond)
	}
}

func testWebUIByKeyboard(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-onboard", "")
	p := b.open(t, s.URL("http"))
	p.press(kb.Tab)
	p.wantFocus("bootstrap")
	if outline := eval[string](p, `getComputedStyle(document.activeElement).outlineStyle`); outline != "solid" {
		t.Errorf("the outline of the focused button is %q, want it seen", outline)
	}
	p.press(kb.Enter)
	p.view("domain")
	p.wantFocus("domain")

	// Back and forth, to see that the focus is never lost.
	p.tabTo("back")
	p.press(kb.Enter)
	p.view("start")
	p.wantFocus("bootstrap")
	p.press(" ")
	p.view("domain")

	p.press("kms.example.com")
	p.press(kb.Enter)
	p.view("record")
	p.wantFocus("record-title")
	for _, id := range []string{"download", "copy-all", "copy-ca_pubkey", "value-ca_pubkey", "copy-quote", "finish"} {
		p.tabTo(id)
	}
	p.press(kb.Enter)
	p.view("ended")
	p.wantFocus("ended-title")
	s.checkEnded(t)
}

// tabTo presses Tab until the focus is on the element.
func (p *tab) tabTo(id string) {
	p.t.Helper()
	var way []string
	for range 12 {
		p.press(kb.Tab)
		at := p.focus()
		if at == id {
			return
		}
		way = append(way, at)
	}
	p.t.Fatalf("Tab does not lead to %s; it led to %q", id, way)
}

func testWebUIBadDomain(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	p := b.open(t, s.URL("http"))
	p.click("bootstrap")
	p.view("domain")
	tests := []struct{ domain, want string }{
		{"", "Enter the domain name of this KMS."},
		{"https://kms.example.com", "Enter the name alone, without https:// and without a path."},
		{"kms.example.com/", "Enter the name alone, without https:// and without a path."},
		{"kms.example.com:9100", "Enter the name without a port."},
		{"kms example", "A domain name has no spaces."},
		{"bücher.example", "Enter an international name in its ASCII form, such as xn--bcher-kva.example."},
	}
	for _, tt := range tests {
		p.fill("domain", tt.domain)
		p.press(kb.Enter)
		if got := p.text("domain-error"); got != tt.want {
			t.Errorf("for %q the page says %q, want %q", tt.domain, got, tt.want)
		}
		p.wantFocus("domain")
	}

	// The service's own sentence, and how a screen reader meets it.
	const bad = "kms..example.com"
	refusal := post(t, s.URL("http")+"/prpc/Onboard.Bootstrap?json", `{"domain":"`+bad+`"}`)
	var answer struct{ Error string }
	if err := json.Unmarshal([]byte(refusal.body), &answer); err != nil || !strings.Contains(answer.Error, "domain") {
		t.Fatalf("the service answers %q, want an error that names the domain", refusal.body)
	}
	p.fill("domain", bad)
	p.click("submit")
	p.until(`document.getElementById('domain-error').checkVisibility()`)
	if got := p.text("domain-error"); got != answer.Error {
		t.Errorf("the page says %q, want the service's sentence %q", got, answer.Error)
	}
	p.wantFocus("domain")
	if got := p.describedField("Domain name"); !strings.HasPrefix(got, answer.Error) {
		t.Errorf("the field is described as %q, want the error first", got)
	}
	p.audit("2-domain-refused")

	p.press("x")
	if got := p.text("domain-error"); got != "" {
		t.Errorf("after a key stroke the page still says %q", got)
	}
	p.fill("domain", "  kms.example.com ")
	p.click("submit")
	p.view("record")
	if got := p.text("record-domain"); got != "kms.example.com" {
		t.Errorf("the record is of %q, want kms.example.com without spaces", got)
	}
}

// describedField returns the description of a text field in the accessibility tree.
func (p *tab) describedField(name string) string {
	p.t.Helper()
	for _, n := range p.tree() {
		if !n.Ignored && axText(n.Role) == "textbox" && axText(n.Name) == name {
			return axText(n.Description)
		}
	}
	p.t.Fatalf("the tree has no field %q", name)
	return ""
}

func testWebUISetupToken(t *testing.T, b *browserTest) {
	const token = "correct-horse-battery-staple-0123456789"
	s := beginSetup(t, "dstack-kms", `setup_token = "`+token+`"`)
	p := b.open(t, s.URL("http"))
	p.click("bootstrap")
	p.view("domain")
	p.fill("domain", "kms.example.com")
	p.click("submit")
	if got := p.text("token-error"); got != "Enter the setup token." {
		t.Errorf("without a token the page says %q, want that it is needed", got)
	}
	p.wantFocus("token")

	p.fill("token", "wrong")
	p.click("submit")
	p.until(`document.getElementById('token-error').textContent.includes('refused')`)
	const refused = "The setup token was refused: the bearer token is wrong."
	if got := p.text("token-error"); got != refused {
		t.Errorf("for a wrong token the page says %q, want %q", got, refused)
	}
	p.wantFocus("token")
	p.audit("2-token-refused")

	p.fill("token", "schlüssel✓")
	p.click("submit")
	p.until(`document.getElementById('token-error').textContent === 'The setup token has a character that cannot be sent.'`)

	p.click("token-show")
	if got := eval[string](p, `document.getElementById('token').type`); got != "text" {
		t.Errorf("after Show the field is %q, want text", got)
	}
	p.fill("token", token)
	p.click("token-show")
	p.click("submit")
	p.view("record")
	kept := eval[string](p, `JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])`)
	if strings.Contains(kept, token) {
		t.Errorf("the page keeps the token: %s", kept)
	}

	// A reload forgets it; Finish asks again.
	p.load(s.URL("http"))
	p.click("bootstrap")
	p.view("domain")
	p.fill("token", token)
	p.click("submit")
	p.view("record")
	p.fill("token", "wrong again")
	p.click("finish")
	p.until(`document.getElementById('token-error').textContent !== ''`)
	p.wantFocus("token")
	p.audit("4-finish-token-refused")
	p.fill("token", token)
	p.press(kb.Enter)
	p.view("ended")
	if got := eval[string](p, `document.getElementById('token').value`); got != "" {
		t.Error("at the end the token is still in its field")
	}
	s.checkEnded(t)
}

func testWebUIReload(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	p := b.open(t, s.URL("http"))
	p.click("bootstrap")
	p.view("domain")
	p.fill("domain", "kms.example.com")
	p.press(kb.Enter)
	p.view("record")
	first := p.content("whole")

	p.load(s.URL("http"))
	p.click("bootstrap")
	p.view("domain")
	if got := eval[string](p, `document.getElementById('domain').value`); got != "kms.example.com" {
		t.Errorf("after a reload the field has %q, want the domain of the attempt", got)
	}
	p.click("submit")
	p.view("record")
	if second := p.content("whole"); second != first {
		t.Errorf("after a reload the record is %.80s…, want the first, %.80s…", second, first)
	}

	// Under another name it is another attempt, and no record of it exists.
	p.load(s.URL("http"))
	p.click("bootstrap")
	p.view("domain")
	p.fill("domain", "other.example.com")
	p.press(kb.Enter)
	p.view("already")
}

func testWebUIAlreadyCompleted(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	if done := post(t, s.URL("http")+"/prpc/Onboard.Bootstrap?json", `{"domain":"kms.example.com"}`); done.StatusCode != http.StatusOK {
		t.Fatalf("Bootstrap = %d %s, want 200", done.StatusCode, done.body)
	}
	p := b.open(t, s.URL("http"))
	p.click("bootstrap")
	p.view("domain")
	p.fill("domain", "kms.example.com")
	p.click("submit")
	p.view("already")
	p.wantFocus("already-title")
	if got := p.text("already-title"); got != "Bootstrap already completed" {
		t.Errorf("the page says %q, want Bootstrap already completed", got)
	}
	p.audit("4-already")
	p.click("finish")
	p.view("ended")
	s.checkEnded(t)
}

func testWebUIRemoteHost(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	url := fmt.Sprintf("http://%s:%d", remoteHost, s.Port)
	p := b.open(t, url)
	if eval[bool](p, `window.isSecureContext || navigator.clipboard !== undefined`) {
		t.Fatal("the page is a secure context: this tests nothing")
	}
	p.click("bootstrap")
	p.view("domain")
	p.fill("domain", "kms.example.com")
	p.click("submit")
	p.view("record")
	r := parseRecord(t, p.content("whole"))
	checkRecord(t, r)
	p.click("copy-k256_pubkey")
	p.announced("Root secp256k1 public key: copied.")

	// What was copied is pasted where it can be read.
	eval[bool](p, `(() => { const f = document.getElementById('domain'); f.closest('section').hidden = false; f.select(); return true; })()`)
	p.do(chromedp.Focus(chromedp.ID("domain")))
	eval[bool](p, `document.getElementById('domain').select() === undefined`)
	p.press("v", chromedp.KeyModifiers(chromedp.ModifierCtrl))
	if got := eval[string](p, `document.getElementById('domain').value`); got != r.K256Pubkey {
		t.Errorf("what was copied pastes as %.40q…, want the key", got)
	}

	// Where the browser refuses that as well, the text is selected for the user.
	eval[bool](p, `(document.execCommand = () => false, true)`)
	p.click("copy-ca_pubkey")
	p.announced("Root CA public key is selected. Press Control C or Command C to copy it.")
	if got := eval[string](p, `getSelection().toString()`); got != r.CAPubkey {
		t.Errorf("selected is %.40q…, want the key", got)
	}
	p.click("finish")
	p.view("ended")
	s.checkEnded(t)
}

func testWebUIWithoutScripts(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	p := b.open(t, s.URL("http"))
	if _, err := chromedp.Call(p.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		t.Fatal(err)
	}
	p.do(chromedp.Navigate(s.URL("http")))
	var texts []string
	for _, n := range p.tree() {
		if !n.Ignored && axText(n.Role) == "StaticText" {
			texts = append(texts, axText(n.Name))
		}
	}
	text := strings.Join(texts, "\n")
	for _, want := range []string{"This page needs JavaScript", "/prpc/Onboard.Bootstrap?json", "curl http://localhost:9100/finish"} {
		if !strings.Contains(text, want) {
			t.Errorf("without scripts the page does not say %q; it says:\n%s", want, text)
		}
	}
	if strings.Contains(text, "Where do the root keys come from?") {
		t.Error("without scripts the page shows buttons that do nothing")
	}
	p.screenshot("0-without-scripts")
}

// testWebUIPolicy shows that a breach of the policy would have been seen in the
// console by the other tests.
func testWebUIPolicy(t *testing.T, b *browserTest) {
	s := beginSetup(t, "dstack-kms", "")
	p := b.open(t, s.URL("http"))
	breaches := map[string]string{
		"an image of another origin": `(() => { const s = document.createElement('img'); s.src = 'https://example.com/x.png'; document.body.append(s); })()`,
		"an inline style":            `(() => { const s = document.createElement('style'); s.append('p{}'); document.head.append(s); })()`,
		"markup from a string":       `(() => { try { document.body.innerHTML = '<p>'; } catch { } })()`,
		"a call of another origin":   `fetch('https://example.com/').catch(() => {})`,
	}
	for what, script := range breaches {
		p.takeProblems()
		eval[chromedp.Void](p, script)
		deadline := time.Now().Add(patience)
		for {
			if got := strings.Join(p.takeProblems(), "\n"); strings.Contains(got, "Content Security Policy") || strings.Contains(got, "'TrustedHTML'") {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s was not refused by the policy", what)
				break
			}
			time.Sleep(15 * time.Millisecond)
		}
	}
	p.ignoreProblems() // the console may be told more of them
}
