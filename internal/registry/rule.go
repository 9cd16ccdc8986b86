package registry

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"teekms/internal/attest"
)

// MaxAdvisorySize bounds the name of an advisory in bytes.
const MaxAdvisorySize = 64

// Kinds returns all kinds, in the order of their names.
func Kinds() []Kind {
	return []Kind{Advisory, App, Compose, Device, Gateway, KMS, KMSDevice, OSImage, TCBStatus}
}

// form is how the values of a kind are written.
type form struct {
	// size is that of a hash or id in bytes; 0 is a word, which word checks.
	size int
	word func(string) error
	// subject says that a rule is about one application.
	subject bool
	// any says that Any may be a value. An application has to be named: its
	// rules are about it.
	any bool
}

const (
	appIDSize = 20
	hashSize  = 32
)

// formOf returns the form of a kind, false for a kind that there is not.
func formOf(k Kind) (form, bool) {
	switch k {
	case Gateway:
		return form{size: appIDSize, any: true}, true
	case TCBStatus:
		return form{word: checkTCBStatus, any: true}, true
	case Advisory:
		return form{word: checkAdvisory, any: true}, true
	case OSImage, KMS, KMSDevice:
		return form{size: hashSize, any: true}, true
	case App:
		return form{size: appIDSize}, true
	case Compose, Device:
		return form{size: hashSize, subject: true, any: true}, true
	default:
		return form{}, false
	}
}

// HasSubject says whether rules of this kind are about one application.
func (k Kind) HasSubject() bool {
	f, _ := formOf(k)
	return f.subject
}

// Valid says whether there is such a kind.
func (k Kind) Valid() bool {
	_, ok := formOf(k)
	return ok
}

// RuleError says what is wrong with a rule. Its text holds nothing but what the
// rule's author wrote, shortened.
type RuleError struct {
	// Field is kind, subject or value.
	Field string
	// Reason says what is wrong with it.
	Reason string
}

// Error names the field and the reason.
func (e *RuleError) Error() string { return e.Field + ": " + e.Reason }

// Canonical returns the one way in which a rule is written: hexadecimal in lower
// case and without 0x. Words are taken as Intel writes them, and in no other
// way. The error is a [*RuleError].
func Canonical(r Rule) (Rule, error) {
	f, ok := formOf(r.Kind)
	if !ok {
		return Rule{}, &RuleError{"kind", fmt.Sprintf("%s is none of %s", quoted(string(r.Kind)), kindNames())}
	}
	out := Rule{Kind: r.Kind}
	var err error
	if out.Subject, err = f.canonicalSubject(r.Subject); err != nil {
		return Rule{}, &RuleError{"subject", err.Error()}
	}
	if out.Value, err = f.canonicalValue(r.Value); err != nil {
		return Rule{}, &RuleError{"value", err.Error()}
	}
	return out, nil
}

// CanonicalAppID returns the one way in which an application id is written. The
// error says what is wrong with it.
func CanonicalAppID(id string) (string, error) { return canonicalHex(id, appIDSize) }

func (f form) canonicalSubject(s string) (string, error) {
	switch {
	case f.subject:
		return canonicalHex(s, appIDSize)
	case s != "":
		return "", errors.New("rules of this kind have none")
	default:
		return "", nil
	}
}

func (f form) canonicalValue(v string) (string, error) {
	switch {
	case v == Any && f.any:
		return v, nil
	case v == Any:
		return "", errors.New("an application has to be named, any is none")
	case f.size > 0:
		return canonicalHex(v, f.size)
	default:
		return v, f.word(v)
	}
}

// canonicalHex reads hexadecimal of so many bytes, in either case and with or
// without 0x.
func canonicalHex(s string, size int) (string, error) {
	digits, prefixed := strings.CutPrefix(s, "0x")
	if !prefixed {
		digits, _ = strings.CutPrefix(s, "0X")
	}
	if len(digits) != 2*size {
		return "", fmt.Errorf("%d characters, want %d hexadecimal digits", len(digits), 2*size)
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		return "", fmt.Errorf("want %d hexadecimal digits", 2*size)
	}
	return hex.EncodeToString(b), nil
}

// TCBStatuses returns the statuses that can be allowed, in Intel's words.
// Revoked cannot.
func TCBStatuses() []string {
	return []string{
		string(attest.UpToDate), string(attest.SWHardeningNeeded), string(attest.ConfigurationNeeded),
		string(attest.ConfigurationAndSWHardeningNeeded), string(attest.OutOfDate), string(attest.OutOfDateConfigurationNeeded),
	}
}

func checkTCBStatus(v string) error {
	if slices.Contains(TCBStatuses(), v) {
		return nil
	}
	if v == string(attest.Revoked) {
		return errors.New("Revoked cannot be allowed") //nolint:staticcheck // Intel's word
	}
	return fmt.Errorf("%s is none of %s", quoted(v), strings.Join(TCBStatuses(), ", "))
}

// checkAdvisory takes names of the form that Intel gives them: words of capital
// letters and digits with hyphens between.
func checkAdvisory(v string) error {
	words := strings.Split(v, "-")
	ok := len(v) <= MaxAdvisorySize && len(words) >= 2
	for _, w := range words {
		ok = ok && w != "" && strings.Trim(w, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == ""
	}
	if !ok {
		return fmt.Errorf("%s is not of the form INTEL-SA-00837", quoted(v))
	}
	return nil
}

// quoted shows the beginning of what somebody wrote.
func quoted(s string) string {
	const most = 64
	if len(s) > most {
		return fmt.Sprintf("%.64q...", s)
	}
	return fmt.Sprintf("%q", s)
}

func kindNames() string {
	names := make([]string, 0, len(Kinds()))
	for _, k := range Kinds() {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}
