package eventlog

import "fmt"

// The names of the runtime events that a guest's set-up makes, in their order
// (docs/wire.md#runtime-events).
const (
	EventSystemPreparing = "system-preparing"
	EventAppID           = "app-id"
	EventComposeHash     = "compose-hash"
	EventInstanceID      = "instance-id"
	EventBootMRDone      = "boot-mr-done"
	EventOSImageHash     = "os-image-hash"
	EventKeyProvider     = "key-provider"
	EventStorageFS       = "storage-fs"
	EventSystemReady     = "system-ready"
)

// Identity is what the runtime events say of the application. A field is nil
// where its event is missing, and empty but not nil where it has no payload.
// Lengths are the caller's to judge.
type Identity struct {
	AppID, ComposeHash, InstanceID, OSImageHash []byte
	// KeyProvider is JSON text.
	KeyProvider []byte
}

// Identity reads the identity from the runtime events up to the first
// "system-ready": what follows is extended by the application itself. An app
// id, compose hash or instance id given twice before that is an error; of the
// other two the first counts.
func (l Log) Identity() (Identity, error) {
	var id Identity
	for i := range l {
		e := &l[i]
		if !e.Runtime() || e.IMR != RuntimeIMR {
			continue
		}
		if e.Name == EventSystemReady {
			break
		}
		field, once := id.field(e.Name)
		switch {
		case field == nil:
		case *field == nil:
			*field = append([]byte{}, e.Payload...)
		case once:
			return Identity{}, fmt.Errorf("event %d: second event %q", i, e.Name)
		}
	}
	return id, nil
}

// field returns where the payload of a named event goes, nil for nowhere, and
// whether the event may be there only once.
func (id *Identity) field(name string) (field *[]byte, once bool) {
	switch name {
	case EventAppID:
		return &id.AppID, true
	case EventComposeHash:
		return &id.ComposeHash, true
	case EventInstanceID:
		return &id.InstanceID, true
	case EventOSImageHash:
		return &id.OSImageHash, false
	case EventKeyProvider:
		return &id.KeyProvider, false
	}
	return nil, false
}
