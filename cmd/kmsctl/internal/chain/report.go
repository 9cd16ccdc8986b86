package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"teekms/cmd/kmsctl/internal/privatefile"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/internal/attest"
)

// The links that are not of the quote itself (those are the Link constants of
// package attest). Their names are part of the JSON schema.
const (
	LinkRecord       = "bootstrap record"
	LinkRootCert     = "root certificate"
	LinkRPCCert      = "RPC certificate"
	LinkK256         = "secp256k1 key"
	LinkExpectations = "expectations"
	LinkOpinion      = "second opinion"
)

// Report is what was found, link by link (docs/kmsctl.md#json).
type Report struct {
	// OK says that every link that was checked holds, and those that must be
	// checked were.
	OK bool `json:"ok"`
	// ExitCode is the code that the tool ends with.
	ExitCode int `json:"exit_code"`
	// Source and Location say what was verified.
	Source   string `json:"source"`
	Location string `json:"location"`
	// VerifiedAt is the time as of which Evidence was verified.
	VerifiedAt time.Time `json:"verified_at"`
	// TrustRootSHA256 is the SHA-256 of the trust root in hex.
	TrustRootSHA256 string `json:"trust_root_sha256"`
	// TrustRootIsIntel says that it is Intel's SGX root.
	TrustRootIsIntel bool `json:"trust_root_is_intel"`
	// Collateral says where collateral was to be had from.
	Collateral string `json:"collateral"`
	// PrivateKeys is what the private files of a key directory say of themselves;
	// nil for other sources.
	PrivateKeys *privatefile.Report `json:"private_keys"`
	// Links are all links in the order in which they are shown.
	Links []Link `json:"links"`
	// Claims are what the Evidence proves, nil where it does not verify.
	Claims *Claims `json:"claims"`
	// Notes are remarks that change nothing about the result.
	Notes []string `json:"notes"`
}

// Link is one link of the chain.
type Link struct {
	// Name says which.
	Name string
	// Checked is false for a link that was not looked at; Detail says why.
	Checked bool
	// Err says why a checked link does not hold.
	Err error
	// Detail says what was found.
	Detail string
}

// MarshalJSON writes ok as null for a link that was not checked.
func (l Link) MarshalJSON() ([]byte, error) {
	out := struct {
		Name   string `json:"name"`
		OK     *bool  `json:"ok"`
		Detail string `json:"detail"`
		Error  string `json:"error"`
	}{Name: l.Name, Detail: l.Detail}
	if l.Checked {
		ok := l.Err == nil
		out.OK = &ok
	}
	if l.Err != nil {
		out.Error = l.Err.Error()
	}
	return json.Marshal(out)
}

func held(name, format string, args ...any) Link {
	return Link{Name: name, Checked: true, Detail: fmt.Sprintf(format, args...)}
}

func broken(name string, err error) Link {
	return Link{Name: name, Checked: true, Err: err}
}

func skipped(name, format string, args ...any) Link {
	return Link{Name: name, Detail: "not checked: " + fmt.Sprintf(format, args...)}
}

// mutableLink returns the link of that name, nil if there is none.
func (r *Report) mutableLink(name string) *Link {
	for i := range r.Links {
		if r.Links[i].Name == name {
			return &r.Links[i]
		}
	}
	return nil
}

// link returns the link of that name.
func (r *Report) link(name string) (Link, bool) {
	if l := r.mutableLink(name); l != nil {
		return *l, true
	}
	return Link{}, false
}

// holds says that the link was checked and holds.
func (r *Report) holds(name string) bool {
	l, ok := r.link(name)
	return ok && l.Checked && l.Err == nil
}

// conclude sets OK and ExitCode from the links.
func (r *Report) conclude() {
	r.ExitCode = status.OK
	for _, l := range r.Links {
		if l.Err != nil && graver(l.code(), r.ExitCode) {
			r.ExitCode = l.code()
		}
	}
	// Nothing that is not checked may pass for good, whatever was left out.
	if r.ExitCode == status.OK && r.Claims == nil {
		r.ExitCode = status.NotVerified
	}
	r.OK = r.ExitCode == status.OK
}

// code is the exit code that a broken link causes.
func (l Link) code() int {
	switch {
	case errors.Is(l.Err, attest.ErrNoCollateral):
		return status.NoCollateral
	case l.Name == LinkExpectations:
		return status.Unexpected
	default:
		return status.NotVerified
	}
}

// graver orders exit codes: what is known to be wrong goes before what cannot
// be told, and that before what is not as expected.
func graver(a, b int) bool {
	order := map[int]int{status.OK: 0, status.Unexpected: 1, status.NoCollateral: 2, status.NotVerified: 3}
	return order[a] > order[b]
}

// Err sums up a report that is not OK in one line, as an error with its exit
// code; nil for one that is.
func (r *Report) Err() error {
	if r.OK {
		return nil
	}
	var why []string
	for _, l := range r.Links {
		if l.Err != nil && l.code() == r.ExitCode {
			why = append(why, l.Name+": "+l.Err.Error())
		}
	}
	text := "Evidence does not verify"
	switch r.ExitCode {
	case status.NoCollateral:
		text = "nothing can be told without valid collateral"
	case status.Unexpected:
		text = "Evidence verifies, but is not what was expected"
	}
	if len(why) > 0 {
		text += ": " + why[0]
	}
	if n := len(why) - 1; n > 0 {
		text += fmt.Sprintf(" (and %d more)", n)
	}
	return status.WithCode(r.ExitCode, errors.New(strings.TrimSpace(text)))
}
