package registry

import (
	"encoding/hex"
	"slices"
	"strings"
)

// Subject is what kind of workload asks, and so which rules it is under.
type Subject string

// The subjects.
const (
	SubjectApp Subject = "app"
	SubjectKMS Subject = "kms"
)

// Workload is what the registry decides on. Of a value whose size is not that of
// its rules nothing is known, and only Any allows it.
type Workload struct {
	// Subject is required.
	Subject Subject
	// AppID has 20 bytes; unused for a KMS.
	AppID []byte
	// The hashes have 32 bytes each. ComposeHash is of an application alone,
	// MRAggregated of a KMS.
	ComposeHash, OSImageHash, MRAggregated, DeviceID []byte
	// TCBStatus is Intel's word, AdvisoryIDs its advisories for the platform.
	TCBStatus   string
	AdvisoryIDs []string
}

// The reasons of denials, in the order of the decision (docs/registry.md#order).
// Existing operators know these texts.
const (
	ReasonTCBStatus = "TCB status is not allowed"
	ReasonAdvisory  = "advisory ID is not allowed"
	ReasonOSImage   = "OS image is not allowed"
	ReasonKMS       = "aggregated MR not allowed"
	ReasonKMSDevice = "KMS is not allowed to boot on this device"
	ReasonApp       = "app not registered"
	ReasonCompose   = "compose hash not allowed"
	ReasonDevice    = "app is not allowed to boot on this device"
)

// maxAdvisories bounds the advisories that rules are looked up for. A platform
// has a handful; what is beyond is not allowed by any rule but Any.
const maxAdvisories = 256

// check is one rule of a decision.
type check struct {
	kind   Kind
	seen   string
	reason string
	// subject is that of the rules.
	subject string
	// exact is the rule that names what was seen; ok is false where there can
	// be none.
	exact Rule
	ok    bool
}

// checks are the rules of a decision, in its order.
func (w *Workload) checks() []check {
	checks := []check{wordCheck(TCBStatus, w.TCBStatus, ReasonTCBStatus)}
	for i, id := range w.AdvisoryIDs {
		c := wordCheck(Advisory, id, ReasonAdvisory)
		c.ok = c.ok && i < maxAdvisories
		checks = append(checks, c)
	}
	checks = append(checks, hexCheck(OSImage, "", w.OSImageHash, ReasonOSImage))
	if w.Subject == SubjectKMS {
		return append(checks,
			hexCheck(KMS, "", w.MRAggregated, ReasonKMS),
			hexCheck(KMSDevice, "", w.DeviceID, ReasonKMSDevice))
	}
	app := hexCheck(App, "", w.AppID, ReasonApp)
	compose := hexCheck(Compose, app.seen, w.ComposeHash, ReasonCompose)
	device := hexCheck(Device, app.seen, w.DeviceID, ReasonDevice)
	if !app.ok {
		compose.ok, device.ok = false, false // nobody's rules
	}
	return append(checks, app, compose, device)
}

func wordCheck(k Kind, seen, reason string) check {
	f, _ := formOf(k)
	return check{kind: k, seen: seen, reason: reason, exact: Rule{Kind: k, Value: seen}, ok: seen != Any && f.word(seen) == nil}
}

func hexCheck(k Kind, subject string, seen []byte, reason string) check {
	f, _ := formOf(k)
	text := hex.EncodeToString(seen)
	return check{
		kind: k, seen: text, reason: reason, subject: subject,
		exact: Rule{Kind: k, Subject: subject, Value: text}, ok: len(seen) == f.size,
	}
}

// anyRule is the rule that lets everything through, false where the kind has
// none, or where it would be the rule of no application.
func (c *check) anyRule() (Rule, bool) {
	f, _ := formOf(c.kind)
	if !f.any || f.subject && len(c.subject) != 2*appIDSize {
		return Rule{}, false
	}
	return Rule{Kind: c.kind, Subject: c.subject, Value: Any}, true
}

// rules are all rules that a decision may rest on, each once.
func rulesOf(checks []check) []Rule {
	rules := make([]Rule, 0, 2*len(checks)+2)
	for i := range checks {
		c := &checks[i]
		if c.ok {
			rules = append(rules, c.exact)
		}
		if r, ok := c.anyRule(); ok && !slices.Contains(rules, r) {
			rules = append(rules, r)
		}
	}
	return rules
}

// passedBy is the rule among those that exist which lets the check pass.
func (c *check) passedBy(exists func(Rule) bool) (Rule, bool) {
	if c.ok && exists(c.exact) {
		return c.exact, true
	}
	if r, ok := c.anyRule(); ok && exists(r) {
		return r, true
	}
	return Rule{}, false
}

// names of what a check is about, for people.
func shown(seen string) string {
	if seen = strings.TrimSpace(seen); seen == "" {
		return "none"
	}
	return seen
}
