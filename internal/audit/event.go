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
	Denial          Kind = "denial"
)

// Event is something that happened. It holds no secret.
type Event struct {
	// ID is made by the Log where it is zero.
	ID [IDSize]byte
	// Time is set by the Log where it is zero.
	Time time.Time
	// Kind is required.
	Kind Kind
	// Fields are names and values, UTF-8, each name once; sorted by name when
	// encoded. Values that are empty are left out.
	Fields map[string]string
	// Edits change the registry in the transaction that appends the record, and
	// are part of the record.
	Edits []registry.Edit
}

// Receipt says where an event was recorded.
type Receipt struct {
	// Seq is the record's place in the log, Size of the log after it at least
	// Seq+1.
	Seq uint64
	// Revision is the registry's after it.
	Revision uint64
}

// Recorder appends events; *Log is one.
type Recorder interface {
	// Append returns when the record is durable. After an error nothing may be
	// released.
	Append(ctx context.Context, e Event) (Receipt, error)
}
