package simtd

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
)

// The attributes of a TD (little-endian in the quote).
const (
	// AttributeDebug lets the host look into the TD.
	AttributeDebug uint64 = 1 << 0
	// AttributeSEPTVEDisable is set in every TD of a Linux guest.
	AttributeSEPTVEDisable uint64 = 1 << 28
)

// defaultImage seeds every measurement that is not set.
const defaultImage = "software-td-1"

// RuntimeEvent is a named event of RTMR3.
type RuntimeEvent struct {
	Name    string
	Payload []byte
}

// Measurements say what a software trust domain claims to be. In a field's zero
// value what was set for the directory before counts, or else the default. RTMR0
// to RTMR2 follow from Image, RTMR3 from the runtime events.
type Measurements struct {
	// Image names the operating system image. The default MRTD, the boot events
	// and the default OSImageHash are derived from it.
	Image string
	// MRTD and MRSeam are derived from Image and from a constant by default.
	MRTD, MRSeam attest.Measurement
	// MRConfigID is by default byte 1 and the compose hash, zero-padded.
	MRConfigID attest.Measurement
	// MROwner and MROwnerConfig are zero by default.
	MROwner, MROwnerConfig attest.Measurement
	// Attributes and XFAM are as a Linux guest has them by default.
	Attributes, XFAM uint64
	// TEETCBSVN is the TDX module's version; [1] is its major version.
	TEETCBSVN [16]byte
	// FMSPC is the platform family. It is in a certificate and cannot change
	// once the directory exists.
	FMSPC [6]byte
	// AppID (20 bytes), ComposeHash (32), InstanceID (20) and OSImageHash (32)
	// are the payloads of runtime events. AppID is by default the first 20 bytes
	// of ComposeHash, InstanceID random in each directory.
	AppID, ComposeHash, InstanceID, OSImageHash []byte
	// KeyProvider is the JSON payload of the event of that name.
	KeyProvider string
	// Runtime, when not nil, replaces all runtime events of the boot.
	Runtime []RuntimeEvent
}

// merge returns m with the fields that o sets.
func (m Measurements) merge(o Measurements) Measurements {
	set(&m.Image, o.Image)
	set(&m.MRTD, o.MRTD)
	set(&m.MRSeam, o.MRSeam)
	set(&m.MRConfigID, o.MRConfigID)
	set(&m.MROwner, o.MROwner)
	set(&m.MROwnerConfig, o.MROwnerConfig)
	set(&m.Attributes, o.Attributes)
	set(&m.XFAM, o.XFAM)
	set(&m.TEETCBSVN, o.TEETCBSVN)
	set(&m.FMSPC, o.FMSPC)
	setBytes(&m.AppID, o.AppID)
	setBytes(&m.ComposeHash, o.ComposeHash)
	setBytes(&m.InstanceID, o.InstanceID)
	setBytes(&m.OSImageHash, o.OSImageHash)
	set(&m.KeyProvider, o.KeyProvider)
	if o.Runtime != nil {
		m.Runtime = o.Runtime
	}
	return m.clone()
}

func set[T comparable](dst *T, v T) {
	var zero T
	if v != zero {
		*dst = v
	}
}

func setBytes(dst *[]byte, v []byte) {
	if len(v) > 0 {
		*dst = v
	}
}

func (m Measurements) clone() Measurements {
	for _, b := range []*[]byte{&m.AppID, &m.ComposeHash, &m.InstanceID, &m.OSImageHash} {
		*b = bytes.Clone(*b)
	}
	if m.Runtime != nil {
		m.Runtime = append([]RuntimeEvent{}, m.Runtime...)
	}
	return m
}

// complete returns m with every default filled in but the instance id, which a
// new directory draws.
func (m Measurements) complete() Measurements {
	d := Measurements{
		Image:       defaultImage,
		MRSeam:      sha512.Sum384([]byte("software-td/seam")),
		Attributes:  AttributeSEPTVEDisable,
		XFAM:        0x602e7,
		TEETCBSVN:   [16]byte{6, 1, 5},
		FMSPC:       [6]byte{0x50, 0x80, 0x6f, 0, 0, 0},
		KeyProvider: `{"name":"none","id":""}`,
	}.merge(m)
	d.MRTD = orElse(d.MRTD, sha512.Sum384([]byte(d.Image+"/mrtd")))
	if len(d.OSImageHash) == 0 {
		h := sha256.Sum256([]byte(d.Image + "/os"))
		d.OSImageHash = h[:]
	}
	if len(d.ComposeHash) == 0 {
		h := sha256.Sum256([]byte("software-td/app-compose.json"))
		d.ComposeHash = h[:]
	}
	if len(d.AppID) == 0 {
		d.AppID = d.ComposeHash[:min(20, len(d.ComposeHash))]
	}
	var id attest.Measurement
	id[0] = 1
	copy(id[1:33], d.ComposeHash)
	d.MRConfigID = orElse(d.MRConfigID, id)
	return d.clone()
}

func orElse[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

func (m Measurements) check() error {
	for _, f := range []struct {
		name string
		got  []byte
		want int
	}{
		{"app id", m.AppID, 20},
		{"compose hash", m.ComposeHash, 32},
		{"instance id", m.InstanceID, 20},
		{"OS image hash", m.OSImageHash, 32},
	} {
		if len(f.got) != 0 && len(f.got) != f.want {
			return fmt.Errorf("%s of %d bytes, want %d", f.name, len(f.got), f.want)
		}
	}
	if len(m.Image) > eventlog.MaxNameSize {
		return errors.New("image name too long")
	}
	return nil
}

// events returns what is extended before an application runs: a firmware's
// events in RTMR0 to RTMR2 and the guest set-up's in RTMR3
// (docs/wire.md#runtime-events).
func (m Measurements) events() eventlog.Log {
	var log eventlog.Log
	for _, b := range bootEvents() {
		payload := []byte(m.Image + "/" + b.name)
		if b.payload != "" {
			payload = []byte(b.payload)
		}
		// The register's index makes separators in two registers differ.
		d := sha512.Sum384(binary.LittleEndian.AppendUint32([]byte(m.Image+"/"+b.name+"/"), b.imr))
		log = append(log, eventlog.Event{IMR: b.imr, Type: b.kind, Digest: d[:], Name: b.name, Payload: payload})
	}
	runtime := m.Runtime
	if runtime == nil {
		runtime = []RuntimeEvent{
			{eventlog.EventSystemPreparing, nil},
			{eventlog.EventAppID, m.AppID},
			{eventlog.EventComposeHash, m.ComposeHash},
			{eventlog.EventInstanceID, m.InstanceID},
			{eventlog.EventBootMRDone, nil},
			{eventlog.EventOSImageHash, m.OSImageHash},
			{eventlog.EventKeyProvider, []byte(m.KeyProvider)},
			{eventlog.EventStorageFS, []byte("ext4")},
			{eventlog.EventSystemReady, nil},
		}
	}
	for _, r := range runtime {
		log = append(log, eventlog.Event{IMR: eventlog.RuntimeIMR, Type: eventlog.RuntimeEventType, Name: r.Name, Payload: r.Payload})
	}
	return log
}

type bootEvent struct {
	imr, kind     uint32
	name, payload string
}

// bootEvents are the measurements of an OVMF boot straight into a kernel, with
// their TCG event types.
func bootEvents() []bootEvent {
	return []bootEvent{
		{0, 0x8000000b, "td-hob", ""},
		{0, 0x8000000a, "cfv", ""},
		{0, 0x80000001, "SecureBoot", ""},
		{0, 0x80000001, "PK", ""},
		{0, 0x80000001, "KEK", ""},
		{0, 0x80000001, "db", ""},
		{0, 0x80000001, "dbx", ""},
		{0, 0x00000004, "separator", ""},
		{0, 0x0000000a, "acpi-loader", "ACPI DATA"},
		{0, 0x0000000a, "acpi-rsdp", "ACPI DATA"},
		{0, 0x0000000a, "acpi-tables", "ACPI DATA"},
		{0, 0x80000002, "BootOrder", ""},
		{1, 0x80000003, "kernel", ""},
		{1, 0x80000007, "Calling EFI Application from Boot Option", ""},
		{1, 0x00000004, "separator", ""},
		{1, 0x80000007, "Exit Boot Services Invocation", ""},
		{1, 0x80000007, "Exit Boot Services Returned with Success", ""},
		{2, 0x00000006, "cmdline", ""},
		{2, 0x00000006, "initrd", ""},
	}
}
