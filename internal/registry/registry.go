// Package registry is the policy of a KMS kept in its database: which KMS
// measurements, OS images, applications, compose hashes, devices and TCB
// statuses are allowed (docs/registry.md).
//
// The rules change only through records of the audit log, in the same
// transaction: see [Edit] and package audit. A [Store] reads them.
package registry

import "context"

// Kind is what a rule is about.
type Kind string

// The kinds of rules. Rules of the last two have a subject, the application.
const (
	// Gateway holds the application id of the gateway, or "any"; one at most.
	Gateway Kind = "gateway"
	// TCBStatus holds Intel's words that are good enough, such as "UpToDate".
	TCBStatus Kind = "tcb_status"
	// Advisory holds Intel's advisories that are borne, such as "INTEL-SA-00837".
	Advisory Kind = "advisory"
	// OSImage holds hashes of OS images, 64 hex digits.
	OSImage Kind = "os_image"
	// KMS holds aggregated measurements of KMSs, 64 hex digits.
	KMS Kind = "kms"
	// KMSDevice holds ids of devices that a KMS may run on, 64 hex digits.
	KMSDevice Kind = "kms_device"
	// App holds application ids, 40 hex digits.
	App Kind = "app"
	// Compose holds the compose hashes of an application, 64 hex digits.
	Compose Kind = "app_compose"
	// Device holds ids of devices that an application may run on, 64 hex digits.
	Device Kind = "app_device"
)

// Any is the value that allows everything of its kind. It is never implied.
const Any = "any"

// Rule allows one thing. Hex is lower case without 0x; a rule is written in one
// way only.
type Rule struct {
	Kind Kind
	// Subject is the application id of a rule about one, else empty.
	Subject string
	// Value is what is allowed.
	Value string
}

// Op is what an edit does.
type Op string

// The operations of an edit.
const (
	// Add adds a rule; one that is there already stays.
	Add Op = "add"
	// Remove removes a rule; one that is not there stays away.
	Remove Op = "remove"
	// RemoveAll removes every rule of the kind and subject; Value is empty.
	RemoveAll Op = "remove_all"
)

// Edit changes one rule.
type Edit struct {
	Op   Op
	Rule Rule
}

// Entry is a rule as it is kept.
type Entry struct {
	Rule
	// Revision is that of the change which added it, counting from 1.
	Revision uint64
}

// Query selects entries.
type Query struct {
	// Kind is required.
	Kind Kind
	// Subject selects one application's; empty is every subject.
	Subject string
	// After is where the last page ended (its last rule); the zero Rule begins.
	After Rule
	// Limit is the most entries of a page; 0 is 1000.
	Limit int
}

// Store reads the rules. Its methods may be called from several goroutines.
type Store interface {
	// Match tells which of the rules exist, all in one consistent read, and
	// the revision of the policy at that moment: 0 before the first change. A
	// rule whose integrity does not hold is an error.
	Match(ctx context.Context, rules []Rule) (found []bool, revision uint64, err error)
	// List returns entries in order of (subject, value), bytewise.
	List(ctx context.Context, q Query) ([]Entry, error)
}
