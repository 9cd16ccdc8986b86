package e2e

import (
	"fmt"
	"strings"

	"github.com/chromedp/chromedp"
)

// phoneWidth is the narrowest screen the page is made for, in CSS pixels.
const phoneWidth = 360

// audit looks at the page in its present state as different people do: by the
// accessibility tree, in both color schemes, on a phone. It keeps screenshots.
func (p *tab) audit(state string) {
	p.t.Helper()
	p.auditTree(state)
	p.auditStructure(state)
	for _, scheme := range []string{"dark", "light"} {
		p.prefers(scheme, "no-preference")
		p.auditContrast(state + ", " + scheme)
		p.screenshot(state + "-" + scheme)
	}
	p.do(chromedp.EmulateViewport(phoneWidth, 780, chromedp.EmulateMobile))
	p.auditWidth(state)
	p.screenshot(state + "-phone")
	p.do(chromedp.EmulateReset(), chromedp.EmulateViewport(1280, 900))
}

// auditTree checks that whatever can be met has a name to be met by.
func (p *tab) auditTree(state string) {
	p.t.Helper()
	named := map[string]bool{
		"button": true, "textbox": true, "link": true, "progressbar": true, "heading": true, "region": true,
		"image": true, "form": false, "DisclosureTriangle": true,
	}
	count := map[string]int{}
	for _, n := range p.tree() {
		if n.Ignored {
			continue
		}
		role := axText(n.Role)
		count[role]++
		if named[role] && axText(n.Name) == "" {
			p.t.Errorf("%s: a %s has no name", state, role)
		}
	}
	for _, landmark := range []string{"main", "banner", "contentinfo", "status"} {
		if count[landmark] != 1 {
			p.t.Errorf("%s: the tree has %d %s, want 1", state, count[landmark], landmark)
		}
	}
	if count["heading"] < 2 {
		p.t.Errorf("%s: the tree has %d headings, want at least 2", state, count["heading"])
	}
}

// structure lists, in the page, what can be told from the document alone.
const structure = `(() => {
  const problems = [];
  const seen = (e) => e.checkVisibility({visibilityProperty: true});
  let level = 0;
  for (const h of [...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].filter(seen)) {
    const next = Number(h.tagName[1]);
    if (next > level + 1) problems.push('heading "' + h.innerText + '" jumps from ' + level + ' to ' + next);
    level = next;
  }
  if ([...document.querySelectorAll('h1')].filter(seen).length !== 1) problems.push('not exactly one h1');
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  for (const id of new Set(ids)) {
    if (ids.filter((i) => i === id).length > 1) problems.push('id ' + id + ' twice');
  }
  for (const e of document.querySelectorAll('[aria-describedby],[aria-labelledby],[aria-controls],label[for]')) {
    for (const name of ['aria-describedby', 'aria-labelledby', 'aria-controls', 'for']) {
      for (const id of (e.getAttribute(name) ?? '').split(/\s+/).filter(Boolean)) {
        if (!document.getElementById(id)) problems.push(name + ' names ' + id + ', which is not there');
      }
    }
  }
  for (const e of [...document.querySelectorAll('button,input,summary')].filter(seen)) {
    const box = e.getBoundingClientRect();
    if (box.height < 24 || box.width < 24) problems.push((e.id || e.innerText) + ' is too small to hit: ' + box.width + 'x' + box.height);
  }
  for (const e of [...document.querySelectorAll('*')].filter(seen)) {
    if (e.scrollHeight > e.clientHeight + 1 && /auto|scroll/.test(getComputedStyle(e).overflowY) && e !== document.documentElement && e.tabIndex < 0) {
      problems.push((e.id || e.tagName) + ' scrolls but cannot be reached by keyboard');
    }
  }
  if (document.documentElement.lang !== 'en') problems.push('the language is not told');
  if (document.title === '') problems.push('no title');
  return problems;
})()`

func (p *tab) auditStructure(state string) {
	p.t.Helper()
	for _, problem := range eval[[]string](p, structure) {
		p.t.Errorf("%s: %s", state, problem)
	}
}

// contrast computes, for every text that is seen, the WCAG 2 contrast ratio to
// the nearest opaque background, and returns those below 4.5.
const contrast = `(() => {
  const parse = (c) => c.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const f = (v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
    return .2126 * f(r) + .7152 * f(g) + .0722 * f(b);
  };
  const backdrop = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
      if (c[3] !== 0) return null;
    }
    return [255, 255, 255];
  };
  const problems = [];
  let texts = 0;
  const check = (e, color, what) => {
    const back = backdrop(e);
    if (back === null) { problems.push(what + ': translucent background'); return; }
    const [a, b] = [luminance(parse(color)), luminance(back)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    texts++;
    if (ratio < 4.5) problems.push(what + ': contrast ' + ratio.toFixed(2));
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    const text = walker.currentNode.data.trim();
    if (text === '' || !e.checkVisibility({visibilityProperty: true}) || e.closest('noscript')) continue;
    check(e, getComputedStyle(e).color, JSON.stringify(text.slice(0, 30)));
  }
  for (const e of document.querySelectorAll('input')) {
    if (e.checkVisibility()) check(e, getComputedStyle(e).color, '#' + e.id);
  }
  if (texts < 15) problems.push('only ' + texts + ' texts were measured');
  return problems;
})()`

func (p *tab) auditContrast(state string) {
	p.t.Helper()
	for _, problem := range eval[[]string](p, contrast) {
		p.t.Errorf("%s: %s", state, problem)
	}
}

// auditWidth finds what sticks out on the phone.
func (p *tab) auditWidth(state string) {
	p.t.Helper()
	if got := eval[int](p, `document.documentElement.scrollWidth`); got > phoneWidth {
		wide := eval[[]string](p, fmt.Sprintf(`[...document.querySelectorAll('body *')]
			.filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > %d && !e.closest('pre'))
			.map((e) => e.tagName + '#' + e.id)`, phoneWidth))
		p.t.Errorf("%s: the page is %d px wide on a screen of %d: %s", state, got, phoneWidth, strings.Join(wide, " "))
	}
}
