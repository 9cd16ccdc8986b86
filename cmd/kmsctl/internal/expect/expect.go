// Package expect holds what a user expects of a KMS, from flags and from a
// file, and compares it with what was verified (docs/kmsctl.md#expectations).
package expect

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Names are the names of what can be expected, in the order in which they are
// compared and shown.
func Names() []string {
	return []string{
		"mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3",
		"mr_config_id", "mr_owner", "mr_owner_config", "mr_seam",
		"device_id", "fmspc",
		"app_id", "compose_hash", "instance_id", "os_image_hash",
		"mr_system", "mr_aggregated",
		"ca_pubkey", "k256_pubkey", "trust_root_sha256",
		domain,
	}
}

// domain is the one name whose value is not hex.
const domain = "domain"

// sizeOf returns how many bytes the value of a name has.
func sizeOf(name string) int {
	switch name {
	case "device_id", "compose_hash", "os_image_hash", "mr_system", "mr_aggregated", "trust_root_sha256":
		return 32
	case "fmspc":
		return 6
	case "app_id", "instance_id":
		return 20
	case "ca_pubkey":
		return 91
	case "k256_pubkey":
		return 33
	default: // registers
		return 48
	}
}

// Expectation is the acceptable values of one claim; one of them must be had.
type Expectation struct {
	Name   string
	AnyOf  []string
	Source string
}

// Set is all that is expected. Each must hold.
type Set []Expectation

// Add adds an expectation. Each value is normalized, to hex in lower case
// without 0x or, for the domain, to lower case. source says where it is from.
func (s *Set) Add(source, name string, anyOf ...string) error {
	if !slices.Contains(Names(), name) {
		return fmt.Errorf("unknown name %q; known are %s", name, strings.Join(Names(), ", "))
	}
	if len(anyOf) == 0 {
		return fmt.Errorf("%s: no value, so that nothing could match", name)
	}
	e := Expectation{Name: name, Source: source}
	for _, v := range anyOf {
		n, err := normalize(name, v)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		e.AnyOf = append(e.AnyOf, n)
	}
	*s = append(*s, e)
	return nil
}

func normalize(name, value string) (string, error) {
	if name == domain {
		return normalizeDomain(value)
	}
	b, err := hex.DecodeString(strings.TrimPrefix(value, "0x"))
	if err != nil {
		return "", fmt.Errorf("want hex: %w", err)
	}
	if want := sizeOf(name); len(b) != want {
		return "", fmt.Errorf("%d hex digits, want %d", 2*len(b), 2*want)
	}
	return hex.EncodeToString(b), nil
}

func normalizeDomain(value string) (string, error) {
	if value == "" {
		return "", errors.New("empty")
	}
	if a, err := netip.ParseAddr(value); err == nil {
		return a.Unmap().String(), nil
	}
	return strings.ToLower(value), nil
}

// Mismatch is an expectation that does not hold.
type Mismatch struct {
	Expectation
	// Got is what was verified; empty when there is no such claim.
	Got []string
}

func (m Mismatch) String() string {
	got := "there is none"
	if len(m.Got) > 0 {
		got = "is " + strings.Join(m.Got, ", ")
	}
	return fmt.Sprintf("%s %s, %s wants %s", m.Name, got, m.Source, strings.Join(m.AnyOf, " or "))
}

// Compare returns the expectations that do not hold. claims gives the values of
// a claim by its name, several for a certificate of several names; what is not
// in it is a mismatch.
func (s Set) Compare(claims map[string][]string) []Mismatch {
	var wrong []Mismatch
	for _, e := range s {
		got := claims[e.Name]
		if !slices.ContainsFunc(got, func(v string) bool { return slices.Contains(e.AnyOf, v) }) {
			wrong = append(wrong, Mismatch{e, got})
		}
	}
	return wrong
}

// Summary names what is expected, each once.
func (s Set) Summary() string {
	var names []string
	for _, e := range s {
		if !slices.Contains(names, e.Name) {
			names = append(names, e.Name)
		}
	}
	return strings.Join(names, ", ")
}

// Identifies says whether something is expected that only the software that is
// meant can have. Registers that run-time code extends are not enough: they say
// nothing without what extended them.
func (s Set) Identifies() bool {
	return slices.ContainsFunc(s, func(e Expectation) bool {
		return e.Name == "mrtd" || e.Name == "mr_system" || e.Name == "mr_aggregated"
	})
}

// Without returns the expectations of other names, and those of this one.
func (s Set) Without(name string) (others, these Set) {
	for _, e := range s {
		if e.Name == name {
			these = append(these, e)
		} else {
			others = append(others, e)
		}
	}
	return others, these
}
