package audit

import (
	"context"
	"time"

	"teekms/internal/registry"
)

// Kind is what happened.
type Kind string

// The kinds of events.
const (
	Bootstrap       Kind = "bootstrap"
	Onboard         Kind = "onboard"
	Start           Kind = "start"
	Stop            Kind = "stop"
	Configuration   Kind = "configuration"
	DatabaseCleared Kind = "database_cleared"
	RegistryChange  Kind = "registry_change"
	ReleaseAppKey   Kind = "app_key"
	ReleaseRootKeys Kind = "root_keys"
	Certificate     Kind = "certificate"
	RPCCertificate  Kind = "rpc_certificate"
	Denial          Kind = "denial"
)

// Kinds returns all kinds of events.
func Kinds() []Kind {
	return []Kind{
		Bootstrap, Onboard, Start, Stop, Configuration, DatabaseCleared, RegistryChange,
		ReleaseAppKey, ReleaseRootKeys, Certificate, RPCCertificate, Denial,
	}
}

// Event is something that happened. It holds no secret.
type Event struct {
	// ID is made by the Log where it is zero.
	ID [IDSize]byte
	// Time is set by the Log where it is zero. Records have microseconds.
	Time time.Time
	// Kind is required.
	Kind Kind
	// Fields are names (1 to 64 of a-z, 0-9 and _) and values, UTF-8 of at most
	// [MaxValue] bytes, each name once and at most [MaxFields]; sorted by name
	// when encoded. Values that are empty are left out.
	Fields map[string]string
	// Edits, at most [MaxEdits], change the registry in the transaction that
	// appends the record, and are part of the record.
	Edits []registry.Edit
	// ExpectedRevision, where it is not nil, is what the registry's revision has
	// to be at that moment; it is [ErrRevision] otherwise. It is not recorded.
	ExpectedRevision *uint64
}

// Receipt says where an event was recorded.
type Receipt struct {
	// Seq is the record's place in the log.
	Seq uint64
	// Revision is the registry's after it.
	Revision uint64
}

// Recorder appends events; *Log is one.
type Recorder interface {
	// Append returns when the record is durable. After an error nothing may be
	// released; a record may exist all the same, of something that then did not
	// happen. The error is [ErrRevision] where ExpectedRevision is not met,
	// [ErrInvalid] where the event cannot be recorded.
	Append(ctx context.Context, e Event) (Receipt, error)
}
