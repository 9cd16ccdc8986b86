package registry

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Bounds of an auth-config.json.
const (
	// MaxAuthConfigSize is in bytes.
	MaxAuthConfigSize = 16 << 20
	maxAuthValues     = 1 << 18
)

// AuthConfig is what an auth-config.json allows, in rules.
type AuthConfig struct {
	// Rules are sorted by kind, subject and value, each once.
	Rules []Rule
	// Notes tell what was understood and is not there word for word, one
	// sentence each.
	Notes []string
}

// The names in the file.
const (
	keyGateway    = "gatewayAppId"
	keyOSImages   = "osImages"
	keyTCB        = "allowedTcbStatuses"
	keyAdvisories = "allowedAdvisoryIds"
	keyKMS        = "kms"
	keyMR         = "mrAggregated"
	keyApps       = "apps"
	keyCompose    = "composeHashes"
	keyDevices    = "devices"
	keyAnyDevice  = "allowAnyDevice"
)

// factKeys are what the file says beside rules: facts that the service it is
// made for repeats, and nobody decides by.
func factKeys() []string { return []string{"kmsContractAddr", "chainId", "appImplementation"} }

// ParseAuthConfig reads the configuration of dstack's auth-simple
// (docs/registry.md#import). What it allows is what that service allows: an
// absent list of TCB statuses is UpToDate, an empty list of devices is [Any],
// both with a note. Unknown names, names given twice and values of another form
// are errors that say where.
func ParseAuthConfig(text []byte) (*AuthConfig, error) {
	if len(text) > MaxAuthConfigSize {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(text), MaxAuthConfigSize)
	}
	r, err := newReader(text, maxAuthValues)
	if err != nil {
		return nil, err
	}
	p := &authParser{r: r}
	if err := r.object("", p.member); err != nil {
		return nil, err
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	if !p.hasTCB {
		p.add(TCBStatus, "", TCBStatuses()[0])
		p.note("%s is absent, which is %s", keyTCB, TCBStatuses()[0])
	}
	SortRules(p.out.Rules)
	p.out.Rules = slices.Compact(p.out.Rules)
	return &p.out, nil
}

// SortRules sorts by kind, subject and value.
func SortRules(rules []Rule) {
	slices.SortFunc(rules, func(a, b Rule) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Value, b.Value))
	})
}

type authParser struct {
	r      *reader
	out    AuthConfig
	hasTCB bool
}

func (p *authParser) note(format string, args ...any) {
	p.out.Notes = append(p.out.Notes, fmt.Sprintf(format, args...))
}

func (p *authParser) add(k Kind, subject, value string) {
	p.out.Rules = append(p.out.Rules, Rule{k, subject, value})
}

// value adds a rule with a value of the file. There, any is no word but where
// said so.
func (p *authParser) value(k Kind, subject string) func(text string) error {
	return func(text string) error {
		if text == Any {
			return errors.New("any is no value here")
		}
		rule, err := Canonical(Rule{k, subject, text})
		if bad, ok := errors.AsType[*RuleError](err); ok {
			return errors.New(bad.Reason)
		}
		p.out.Rules = append(p.out.Rules, rule)
		return nil
	}
}

func (p *authParser) member(at, name string) error {
	switch name {
	case keyGateway:
		return p.gateway(at)
	case keyOSImages:
		return p.r.texts(at, p.value(OSImage, ""))
	case keyTCB:
		p.hasTCB = true
		return p.r.texts(at, p.value(TCBStatus, ""))
	case keyAdvisories:
		return p.r.texts(at, p.value(Advisory, ""))
	case keyKMS:
		return p.workloads(at, keyMR, KMS, KMSDevice, "")
	case keyApps:
		return p.apps(at)
	}
	if slices.Contains(factKeys(), name) {
		p.note("%s decides nothing and is left out", name)
		return p.r.scalar(at)
	}
	return fmt.Errorf("unknown name %s", quoted(name))
}

func (p *authParser) gateway(at string) error {
	text, err := p.r.text(at)
	if err != nil || text == "" {
		return err
	}
	rule, err := Canonical(Rule{Kind: Gateway, Value: text})
	if bad, ok := errors.AsType[*RuleError](err); ok {
		return fmt.Errorf("%s: %s", at, bad.Reason)
	}
	p.out.Rules = append(p.out.Rules, rule)
	return nil
}

func (p *authParser) apps(at string) error {
	seen := map[string]bool{}
	return p.r.object(at, func(at, name string) error {
		id, err := CanonicalAppID(name)
		if err != nil {
			return fmt.Errorf("%s: %s is no application id: %w", keyApps, quoted(name), err)
		}
		if seen[id] {
			return fmt.Errorf("%s: %s is given twice", keyApps, id)
		}
		seen[id] = true
		p.add(App, "", id)
		return p.workloads(at, keyCompose, Compose, Device, id)
	})
}

// workloads reads what is allowed of one application, or of KMSs.
func (p *authParser) workloads(at, listName string, list, device Kind, subject string) error {
	before, anyDevice := len(p.out.Rules), false
	err := p.r.object(at, func(at, name string) error {
		var err error
		switch name {
		case listName:
			return p.r.texts(at, p.value(list, subject))
		case keyDevices:
			return p.r.texts(at, p.value(device, subject))
		case keyAnyDevice:
			anyDevice, err = p.r.bool(at)
			return err
		default:
			return fmt.Errorf("%s: unknown name %s", at[:len(at)-len(name)-1], quoted(name))
		}
	})
	if err != nil {
		return err
	}
	added := p.out.Rules[before:]
	has := func(k Kind) bool { return slices.ContainsFunc(added, func(r Rule) bool { return r.Kind == k }) }
	switch {
	case anyDevice:
		p.add(device, subject, Any)
	case has(list) && !has(device):
		p.add(device, subject, Any)
		p.note("%s: no device is listed, which allows any device there; here that is written %s", p.who(subject), Any)
	}
	return nil
}

func (p *authParser) who(subject string) string {
	if subject == "" {
		return keyKMS
	}
	return keyApps + "." + subject
}

// authFile is the file as it is written.
type authFile struct {
	Gateway    string             `json:"gatewayAppId"`
	OSImages   []string           `json:"osImages"`
	TCB        []string           `json:"allowedTcbStatuses"`
	Advisories []string           `json:"allowedAdvisoryIds"`
	KMS        authKMS            `json:"kms"`
	Apps       map[string]authApp `json:"apps"`
}

type authKMS struct {
	MR []string `json:"mrAggregated"`
	authDevices
}

type authApp struct {
	Compose []string `json:"composeHashes"`
	authDevices
}

type authDevices struct {
	Devices []string `json:"devices"`
	Any     bool     `json:"allowAnyDevice"`
}

// Format writes rules as an auth-config.json. What the file cannot say is left
// out, with a note: the file never allows more than the rules. Rules are taken in
// their canonical form.
func Format(rules []Rule) *AuthFile {
	b := &authWriter{apps: map[string]*authApp{}}
	b.file = authFile{OSImages: []string{}, TCB: []string{}, Advisories: []string{}}
	b.file.KMS = authKMS{MR: []string{}, authDevices: authDevices{Devices: []string{}}}
	rules = slices.Clone(rules)
	SortRules(rules)
	for _, r := range slices.Compact(rules) {
		if r.Kind == App {
			b.apps[r.Value] = &authApp{Compose: []string{}, authDevices: authDevices{Devices: []string{}}}
		}
	}
	for _, r := range slices.Compact(rules) {
		b.rule(r)
	}
	b.finish()
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	_ = e.Encode(b.file) // strings, lists and maps always encode
	return &AuthFile{Text: text.Bytes(), Notes: b.notes}
}

// AuthFile is a written auth-config.json.
type AuthFile struct {
	// Text is the file.
	Text []byte
	// Notes tell what it does not say, one sentence each.
	Notes []string
}

type authWriter struct {
	file  authFile
	apps  map[string]*authApp
	notes []string
}

func (b *authWriter) note(format string, args ...any) {
	b.notes = append(b.notes, fmt.Sprintf(format, args...))
}

// rule puts a rule where it belongs.
func (b *authWriter) rule(r Rule) {
	switch r.Kind {
	case Gateway:
		b.file.Gateway = hexOrAny(r.Value)
	case TCBStatus:
		b.list(&b.file.TCB, r, r.Value)
	case Advisory:
		b.list(&b.file.Advisories, r, r.Value)
	case OSImage:
		b.list(&b.file.OSImages, r, "0x"+r.Value)
	case KMS:
		b.list(&b.file.KMS.MR, r, "0x"+r.Value)
	case KMSDevice:
		b.file.KMS.device(r.Value)
	case Compose, Device:
		app := b.apps[r.Subject]
		switch {
		case app == nil:
			b.note("%s %s of %s is left out: the application is not registered", r.Kind, r.Value, r.Subject)
		case r.Kind == Compose:
			b.list(&app.Compose, r, "0x"+r.Value)
		default:
			app.device(r.Value)
		}
	case App: // made before
	}
}

func (d *authDevices) device(value string) {
	if value == Any {
		d.Any = true
	} else {
		d.Devices = append(d.Devices, "0x"+value)
	}
}

func hexOrAny(v string) string {
	if v == Any {
		return v
	}
	return "0x" + v
}

// list appends to a list that has no word for any.
func (b *authWriter) list(list *[]string, r Rule, value string) {
	if r.Value != Any {
		*list = append(*list, value)
		return
	}
	of := ""
	if r.Subject != "" {
		of = " of " + r.Subject
	}
	b.note("%s%s: any is left out, the file has no word for it", r.Kind, of)
}

// finish leaves out what the file would allow on any device, because no device
// is listed.
func (b *authWriter) finish() {
	if k := &b.file.KMS; len(k.MR) > 0 && k.none() {
		b.note("all KMS measurements are left out: no device is allowed, and without one the file would allow any")
		k.MR = []string{}
	}
	b.file.Apps = make(map[string]authApp, len(b.apps))
	for id, app := range b.apps {
		if len(app.Compose) > 0 && app.none() {
			b.note("all compose hashes of %s are left out: no device is allowed, and without one the file would allow any", id)
			app.Compose = []string{}
		}
		b.file.Apps["0x"+id] = *app
	}
	slices.SortFunc(b.notes, strings.Compare)
}

func (d *authDevices) none() bool { return len(d.Devices) == 0 && !d.Any }
