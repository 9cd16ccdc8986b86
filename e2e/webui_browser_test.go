package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// remoteHost is a name that the browser resolves to this machine and does not
// trust: pages of it are no secure context, as those of any remote host on
// plain HTTP.
const remoteHost = "kms.test"

// chromium starts a browser with a profile of its own and returns the context
// from which tabs are opened.
func chromium(t *testing.T) context.Context {
	t.Helper()
	// Below buildDir, not of the test: processes of the browser may write there for a
	// moment after it has ended.
	profile, err := os.MkdirTemp(buildDir, "profile-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromiumPath(t)),
		chromedp.NoSandbox,
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("host-resolver-rules", "MAP "+remoteHost+" 127.0.0.1"),
		chromedp.UserDataDir(profile),
		chromedp.WSURLReadTimeout(patience),
		chromedp.WindowSize(1280, 900),
	)
	alloc, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancel)
	ctx, _ := chromedp.NewContext(alloc)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if err := chromedp.Cancel(ctx); err != nil {
			t.Errorf("closing the browser: %v", err)
		}
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting the browser: %v", err)
	}
	return ctx
}

func chromiumPath(t *testing.T) string {
	t.Helper()
	for _, path := range []string{"/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Fatal("no chromium here: run make deps")
	return ""
}

// tab is one page in a browser context of its own: no storage is shared with
// another tab.
type tab struct {
	t   *testing.T
	ctx context.Context //nolint:containedctx // chromedp keeps the tab in its context

	mu       sync.Mutex // guards what follows
	problems []string
	deaf     bool // to problems
}

// openTab opens an empty tab. At the end of the test the console of the tab must be
// clean: no error, no exception, nothing refused by the policy.
func openTab(t *testing.T, browserCtx context.Context) *tab {
	t.Helper()
	p := &tab{t: t}
	ctx, cancel := chromedp.NewContext(browserCtx, chromedp.WithNewBrowserContext(), chromedp.WithListener(p.listen))
	t.Cleanup(cancel)
	p.ctx = ctx
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("opening a tab: %v", err)
	}
	t.Cleanup(func() {
		for _, problem := range p.takeProblems() {
			t.Errorf("console: %s", problem)
		}
	})
	return p
}

// listen keeps what the console should not have. A refused or failed call of
// the API is logged by the browser itself and is the page's daily bread.
func (p *tab) listen(ev any) {
	var problem string
	switch ev := ev.(type) {
	case *log.EventEntryAdded:
		e := ev.Entry
		if e.Source == log.EntrySourceNetwork && (strings.Contains(e.URL, "/prpc/Onboard.") || strings.HasSuffix(e.URL, "/health")) {
			return
		}
		problem = fmt.Sprintf("%s %s: %s (%s)", e.Source, e.Level, e.Text, e.URL)
	case *runtime.EventExceptionThrown:
		problem = fmt.Sprintf("exception: %s", ev.ExceptionDetails.Text)
		if x := ev.ExceptionDetails.Exception; x != nil {
			problem += " " + x.Description
		}
	case *runtime.EventConsoleAPICalled:
		problem = fmt.Sprintf("console.%s was called", ev.Type)
	default:
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.deaf {
		p.problems = append(p.problems, problem)
	}
}

func (p *tab) takeProblems() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	problems := p.problems
	p.problems = nil
	return problems
}

// ignoreProblems forgets those of before, and of now on.
func (p *tab) ignoreProblems() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problems, p.deaf = nil, true
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.t.Fatalf("in the browser: %v; the page says:\n%s", err, p.dump())
	}
}

// dump is what a reader sees, for failures.
func (p *tab) dump() string {
	ctx, cancel := context.WithTimeout(p.ctx, time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.innerText`))
	if err != nil {
		return "(" + err.Error() + ")"
	}
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, fmt.Sprintf("%.100s", strings.TrimSpace(line)))
	}
	return strings.Join(lines, "\n")
}

// eval returns the value of a JavaScript expression; promises are awaited.
func eval[T any](p *tab, expression string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("evaluating %s: %v", expression, err)
	}
	return v
}

// until waits for a JavaScript condition.
func (p *tab) until(condition string) {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for !eval[bool](p, "!!("+condition+")") {
		if time.Now().After(deadline) {
			p.t.Fatalf("not true after %v: %s; the page says:\n%s", patience, condition, p.dump())
		}
		time.Sleep(15 * time.Millisecond)
	}
}

// load opens url and waits until the panel with the facts has its answer, or
// the page without scripts stands.
func (p *tab) load(url string) {
	p.t.Helper()
	p.do(chromedp.Navigate(url))
	p.settled()
}

func (p *tab) settled() {
	p.t.Helper()
	p.until(`document.querySelector('#facts[aria-busy="false"]')`)
}

// view waits until the named section is shown.
func (p *tab) view(name string) {
	p.t.Helper()
	p.until(fmt.Sprintf(`!document.getElementById('view-%s').hidden`, name))
}

func (p *tab) click(id string) {
	p.t.Helper()
	p.do(chromedp.Click(chromedp.ID(id), chromedp.NodeVisible))
}

// fill replaces what is in a field, as a user does: select all, delete, paste.
func (p *tab) fill(id, text string) {
	p.t.Helper()
	p.do(chromedp.Focus(chromedp.ID(id), chromedp.NodeVisible))
	eval[bool](p, fmt.Sprintf(`document.getElementById(%q).select() === undefined`, id))
	p.press(kb.Backspace)
	p.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, input.InsertText, input.InsertTextParams{Text: text})
		return err
	}))
}

// press sends key strokes to whatever has the focus.
func (p *tab) press(keys string, opts ...chromedp.KeyOption) {
	p.t.Helper()
	p.do(chromedp.KeyEvent(keys, opts...))
}

// text is what is seen of an element; nothing when it is hidden.
func (p *tab) text(id string) string {
	p.t.Helper()
	return eval[string](p, fmt.Sprintf(
		`(e => e.checkVisibility() ? e.innerText.trim() : '')(document.getElementById(%q))`, id))
}

// content is the text of an element, seen or not.
func (p *tab) content(id string) string {
	p.t.Helper()
	return eval[string](p, fmt.Sprintf(`document.getElementById(%q).textContent`, id))
}

func (p *tab) focus() string {
	p.t.Helper()
	return eval[string](p, `document.activeElement.id`)
}

// wantFocus waits until the element has the focus.
func (p *tab) wantFocus(id string) {
	p.t.Helper()
	p.until(fmt.Sprintf(`document.activeElement.id === %q`, id))
}

// announced waits until the live region says the sentence.
func (p *tab) announced(sentence string) {
	p.t.Helper()
	p.until(fmt.Sprintf(`document.querySelector('[role=status]').textContent === %q`, sentence))
}

// allowClipboardRead lets the test read what the page copied.
func (p *tab) allowClipboardRead(origin string) {
	p.t.Helper()
	id := chromedp.FromContext(p.ctx).BrowserContextID
	_, err := chromedp.CallBrowser(p.ctx, browser.SetPermission, browser.SetPermissionParams{
		Permission: &browser.PermissionDescriptor{Name: "clipboard-read", AllowWithoutSanitization: true},
		Setting:    browser.PermissionSettingGranted,
		Origin:     origin, BrowserContextID: id,
	})
	if err != nil {
		p.t.Fatalf("granting the clipboard: %v", err)
	}
}

// downloadsTo has the browser save downloads under their own names.
func (p *tab) downloadsTo(dir string) {
	p.t.Helper()
	id := chromedp.FromContext(p.ctx).BrowserContextID
	_, err := chromedp.CallBrowser(p.ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
		Behavior: browser.SetDownloadBehaviorBehaviorAllow, BrowserContextID: id, DownloadPath: dir,
	})
	if err != nil {
		p.t.Fatalf("allowing downloads: %v", err)
	}
}

// prefers emulates the user's preferences: a color scheme, "light" or "dark",
// and motion, "reduce" or "no-preference".
func (p *tab) prefers(scheme, motion string) {
	p.t.Helper()
	p.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{
				{Name: "prefers-color-scheme", Value: scheme},
				{Name: "prefers-reduced-motion", Value: motion},
			},
		})
		return err
	}))
	// Colors fade for a moment.
	p.until(`document.getAnimations().every((a) => !(a instanceof CSSTransition))`)
}

// screenshot keeps what the page looks like, for people.
func (p *tab) screenshot(name string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		p.t.Fatalf("taking a screenshot: %v", err)
	}
	if err := os.MkdirAll("artifacts", 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("artifacts", "webui-"+name+".png"), png, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// tree is the page as assistive technology meets it.
func (p *tab) tree() []*accessibility.Node {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	tree, err := chromedp.Call(ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	if err != nil {
		p.t.Fatalf("reading the accessibility tree: %v", err)
	}
	return tree.Nodes
}

// axText reads a computed property of a node of the tree.
func axText(v *accessibility.Value) string {
	if v == nil {
		return ""
	}
	var s string
	if err := json.Unmarshal(v.Value, &s); err != nil {
		return string(v.Value)
	}
	return strings.TrimSpace(s)
}

// browserTest is what the cases share: the browser.
type browserTest struct {
	ctx context.Context //nolint:containedctx // chromedp keeps the browser in its context
}

// open loads url in a tab of its own.
func (b *browserTest) open(t *testing.T, url string) *tab {
	t.Helper()
	p := openTab(t, b.ctx)
	p.load(url)
	return p
}
