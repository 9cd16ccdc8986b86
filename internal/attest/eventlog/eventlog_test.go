package eventlog_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
)

func runtimeEvent(name string, payload ...byte) eventlog.Event {
	return eventlog.Event{IMR: 3, Type: eventlog.RuntimeEventType, Name: name, Payload: payload}
}

func sha384(parts ...string) []byte {
	d := sha512.Sum384([]byte(strings.Join(parts, "")))
	return d[:]
}

func TestMeasuredDigest(t *testing.T) {
	payload := []byte{0xab, 0xcd}
	v1 := sha384("\x01\x00\x00\x08:compose-hash:\xab\xcd")
	v2 := sha384(`{"name":"compose-hash","payload":"abcd","type":134217729}`)
	tests := []struct {
		name  string
		event eventlog.Event
		want  []byte
		err   string
	}{
		{"version 1 without a digest", eventlog.Event{IMR: 3, Type: eventlog.RuntimeEventType, Name: "compose-hash", Payload: payload}, v1, ""},
		{"version 1 with its digest", eventlog.Event{IMR: 3, Type: eventlog.RuntimeEventType, Name: "compose-hash", Payload: payload, Digest: v1}, v1, ""},
		{"version 1 named", eventlog.Event{IMR: 3, Type: eventlog.RuntimeEventType, Name: "compose-hash", Payload: payload, Version: 1}, v1, ""},
		{"version 2 without a digest", eventlog.Event{IMR: 3, Type: eventlog.RuntimeEventType, Name: "compose-hash", Payload: payload, Version: 2}, v2, ""},
		{"version 2 with its digest", eventlog.Event{IMR: 3, Type: eventlog.RuntimeEventType, Name: "compose-hash", Payload: payload, Version: 2, Digest: v2}, v2, ""},
		{"version 2 with the digest of version 1", eventlog.Event{IMR: 3, Type: eventlog.RuntimeEventType, Name: "compose-hash", Payload: payload, Version: 2, Digest: v1}, nil, `digest of runtime event "compose-hash" is not that of its name and payload`},
		{"version 1 with another payload", eventlog.Event{IMR: 3, Type: eventlog.RuntimeEventType, Name: "compose-hash", Payload: []byte{0xab}, Digest: v1}, nil, "is not that of its name and payload"},
		{
			"version 2 with characters to escape",
			eventlog.Event{IMR: 3, Type: eventlog.RuntimeEventType, Name: "a\"\\/\b\t\n\f\r\x01\x1fé<&>\u2028", Version: 2},
			sha384(`{"name":"a\"\\/\b\t\n\f\r\u0001\u001fé<&>` + "\u2028" + `","payload":"","type":134217729}`), "",
		},
		{"boot event", eventlog.Event{IMR: 1, Type: 4, Digest: v1, Payload: []byte("not covered")}, v1, ""},
		{"boot event without a digest", eventlog.Event{IMR: 1, Type: 4}, nil, "digest of 0 bytes, want 48"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.event.MeasuredDigest()
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("MeasuredDigest() = %x, %v, want error %q", got, err, tt.err)
				}
				return
			}
			if err != nil || !bytes.Equal(got[:], tt.want) {
				t.Errorf("MeasuredDigest() = %x, %v, want %x", got, err, tt.want)
			}
		})
	}
}

func TestReplayExtendsTheRegisterOfEachEvent(t *testing.T) {
	a, b := sha384("a"), sha384("b")
	log := eventlog.Log{
		{IMR: 0, Type: 4, Digest: a},
		{IMR: 2, Type: 4, Digest: b},
		{IMR: 0, Type: 4, Digest: b},
		runtimeEvent("x", 1),
		// A boot event's type on register 3 extends it with its own digest.
		{IMR: 3, Type: 6, Name: "app-id", Digest: a},
	}
	zero := strings.Repeat("\x00", 48)
	want := [4]attest.Measurement{
		attest.Measurement(sha384(string(sha384(zero, string(a))), string(b))),
		{},
		attest.Measurement(sha384(zero, string(b))),
		attest.Measurement(sha384(string(sha384(zero, string(sha384("\x01\x00\x00\x08:x:\x01")))), string(a))),
	}
	got, err := log.Replay()
	if err != nil || got != want {
		t.Errorf("Replay() = %x, %v, want %x", got, err, want)
	}
	if id, err := log.Identity(); err != nil || id.AppID != nil {
		t.Errorf("Identity() = %+v, %v, want no app id from an event whose payload is not measured", id, err)
	}
	if got := len(log.RuntimeEvents()); got != 1 {
		t.Errorf("len(RuntimeEvents()) = %d, want 1", got)
	}
}

func TestReplayRefuses(t *testing.T) {
	forged := runtimeEvent("app-id", 1)
	forged.Digest = sha384("another")
	tests := []struct {
		name  string
		event eventlog.Event
		want  string
	}{
		{"runtime event whose digest is another's", forged, `event 1: digest of runtime event "app-id" is not that of its name and payload`},
		{"runtime event on a boot register", eventlog.Event{IMR: 2, Type: eventlog.RuntimeEventType}, "event 1: runtime event on imr 2, want 3"},
		{"boot event without a digest", eventlog.Event{IMR: 0, Type: 4}, "event 1: digest of 0 bytes, want 48"},
		{"register there is not", eventlog.Event{IMR: 4, Type: 4, Digest: sha384("")}, "event 1: imr is 4, want 0 to 3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := eventlog.Log{runtimeEvent("first"), tt.event}.Replay()
			if err == nil || err.Error() != tt.want {
				t.Errorf("Replay() = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestReplayUntilIncludesTheNamedEvent(t *testing.T) {
	log := eventlog.Log{runtimeEvent("a", 1), runtimeEvent("boot-mr-done"), runtimeEvent("b"), runtimeEvent("boot-mr-done")}
	got, err := log.ReplayUntil("boot-mr-done")
	if err != nil {
		t.Fatal(err)
	}
	want, err := log[:2].Replay()
	if err != nil || got != want {
		t.Errorf("ReplayUntil() = %x, want %x, %v", got[3], want[3], err)
	}
	if _, err := log.ReplayUntil("missing"); !errors.Is(err, eventlog.ErrNoEvent) {
		t.Errorf("ReplayUntil(missing) = %v, want %v", err, eventlog.ErrNoEvent)
	}
	// A boot event of that name ends nothing: its name is covered by nothing.
	boot := eventlog.Log{{IMR: 3, Type: 4, Name: "x", Digest: sha384("")}}
	if _, err := boot.ReplayUntil("x"); !errors.Is(err, eventlog.ErrNoEvent) {
		t.Errorf("ReplayUntil(name of a boot event) = %v, want %v", err, eventlog.ErrNoEvent)
	}
}

func TestIdentity(t *testing.T) {
	app := bytes.Repeat([]byte{1}, 20)
	tests := []struct {
		name string
		log  eventlog.Log
		want eventlog.Identity
		err  string
	}{
		{
			"guest with everything",
			eventlog.Log{
				runtimeEvent("system-preparing"), runtimeEvent("app-id", app...), runtimeEvent("compose-hash", 2), runtimeEvent("instance-id"),
				runtimeEvent("boot-mr-done"), runtimeEvent("os-image-hash", 3), runtimeEvent("os-image-hash", 4),
				runtimeEvent("key-provider", []byte(`{"name":"kms"}`)...), runtimeEvent("system-ready"),
			},
			eventlog.Identity{AppID: app, ComposeHash: []byte{2}, InstanceID: []byte{}, OSImageHash: []byte{3}, KeyProvider: []byte(`{"name":"kms"}`)},
			"",
		},
		{"nothing", eventlog.Log{}, eventlog.Identity{}, ""},
		{
			"events of the application are not the platform's",
			eventlog.Log{runtimeEvent("app-id", 1), runtimeEvent("system-ready"), runtimeEvent("compose-hash", 9), runtimeEvent("app-id", 9), runtimeEvent("system-ready")},
			eventlog.Identity{AppID: []byte{1}},
			"",
		},
		{"second app id", eventlog.Log{runtimeEvent("app-id", 1), runtimeEvent("app-id", 1)}, eventlog.Identity{}, `event 1: second event "app-id"`},
		{"second app id after an empty one", eventlog.Log{runtimeEvent("app-id"), runtimeEvent("app-id", 1)}, eventlog.Identity{}, `event 1: second event "app-id"`},
		{"second compose hash", eventlog.Log{runtimeEvent("compose-hash", 1), runtimeEvent("x"), runtimeEvent("compose-hash", 2)}, eventlog.Identity{}, `event 2: second event "compose-hash"`},
		{"second instance id", eventlog.Log{runtimeEvent("instance-id", 1), runtimeEvent("instance-id", 2)}, eventlog.Identity{}, `event 1: second event "instance-id"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.log.Identity()
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Fatalf("Identity() = %v, want %q", err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Errorf("Identity() = %v, (-want +got)\n%s", err, diff)
			}
		})
	}
}

func TestParse(t *testing.T) {
	d := sha384("x")
	text := `[{"imr":0,"event_type":2147483659,"digest":"` + strings.ToUpper(hex.EncodeToString(d)) + `","event":"td","event_payload":"AbCd","future":{"a":[1,{}]},"preimage":""},
	          {"event_payload":"","event":"app-id","event_type":134217729,"imr":3,"version":2},
	          {"event_payload":"","event":"v1","event_type":134217729,"imr":3,"digest":"","version":1}]`
	want := eventlog.Log{
		{IMR: 0, Type: 0x8000000b, Digest: d, Name: "td", Payload: []byte{0xab, 0xcd}},
		{IMR: 3, Type: eventlog.RuntimeEventType, Name: "app-id", Version: 2},
		{IMR: 3, Type: eventlog.RuntimeEventType, Name: "v1"},
	}
	got, err := eventlog.Parse([]byte(text))
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Parse() = %v, (-want +got)\n%s", err, diff)
	}
}

func TestParseRefuses(t *testing.T) {
	event := func(more string) string {
		return `[{"imr":0,"event_type":1,"event":"","event_payload":""` + more + `}]`
	}
	nested := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	tests := []struct{ name, text, want string }{
		{"nothing", "", "event log is not JSON"},
		{"no array", "null", "event log: want ["},
		{"object", "{}", "event log: want ["},
		{"second value", "[] []", "event log is not JSON"},
		{"not UTF-8", "[{\"event\":\"\xff\"}]", "event log is not UTF-8"},
		{"element that is no object", "[1]", "event 0: want {"},
		{"imr of 4", `[{"imr":4,"event_type":1,"event":"","event_payload":""}]`, "event 0: imr is 4, want 0 to 3"},
		{"negative imr", `[{"imr":-1}]`, "event 0: imr: want an integer of 32 bits without sign"},
		{"imr as text", `[{"imr":"0"}]`, "event 0: imr: want a number"},
		{"imr as fraction", `[{"imr":1.0}]`, "event 0: imr: want an integer of 32 bits without sign"},
		{"imr as null", `[{"imr":null}]`, "event 0: imr: want a number"},
		{"event type of 33 bits", `[{"event_type":4294967296}]`, "event 0: event_type: want an integer of 32 bits without sign"},
		{"digest as null", event(`,"digest":null`), "event 0: digest: want a string"},
		{"digest not hex", event(`,"digest":"zz"`), "event 0: digest: want hex"},
		{"digest too short", event(`,"digest":"00"`), "event 0: digest of 1 bytes, want 48 or none"},
		{"payload as array", `[{"event_payload":[]}]`, "event 0: event_payload: want a string"},
		{"payload of odd length", `[{"event_payload":"0"}]`, "event 0: event_payload: want hex"},
		{"version 3", event(`,"version":3`), "event 0: version: is 3, want 1 or 2"},
		{"imr missing", `[{"event_type":1,"event":"","event_payload":""}]`, "event 0: imr: missing"},
		{"event type missing", `[{"imr":1,"event":"","event_payload":""}]`, "event 0: event_type: missing"},
		{"event missing", `[{"imr":1,"event_type":1,"event_payload":""}]`, "event 0: event: missing"},
		{"payload missing", `[{"imr":1,"event_type":1,"event":""}]`, "event 0: event_payload: missing"},
		{"key of another case", `[{"IMR":1,"event_type":1,"event":"","event_payload":""}]`, "event 0: imr: missing"},
		{"imr given twice", event(`,"imr":3`), "event 0: imr: given twice"},
		{"runtime event on a boot register", `[{"imr":0,"event_type":134217729,"event":"","event_payload":""}]`, "event 0: runtime event on imr 0, want 3"},
		{"unknown value too deep", event(`,"x":` + nested(17)), "event 0: x: nested deeper than 16"},
		{"name too long", `[{"imr":0,"event_type":1,"event":"` + strings.Repeat("a", 1025) + `","event_payload":""}]`, "event 0: event of 1025 bytes, want at most 1024"},
		{"payload too long", `[{"imr":0,"event_type":1,"event":"","event_payload":"` + strings.Repeat("00", 1<<20+1) + `"}]`, "event 0: event_payload of 1048577 bytes, want at most 1048576"},
		{"text too long", strings.Repeat(" ", 4<<20) + "[]", "event log of 4194306 bytes, want at most 4194304"},
		{"too many events", "[" + strings.Repeat(strings.Trim(event(""), "[]")+",", 4096) + strings.Trim(event(""), "[]") + "]", "event log has more than 4096 events"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := eventlog.Parse([]byte(tt.text))
			if err == nil || err.Error() != tt.want {
				t.Errorf("Parse(%.80s) = %v, %v, want %q", tt.text, got, err, tt.want)
			}
		})
	}
	if _, err := eventlog.Parse([]byte(event(`,"x":` + nested(16)))); err != nil {
		t.Errorf("Parse(unknown value of depth 16) = %v, want nil", err)
	}
}

func TestMarshalWritesTheKeysInOrder(t *testing.T) {
	log := eventlog.Log{{IMR: 3, Type: eventlog.RuntimeEventType, Name: "a", Payload: []byte{0xAB}, Version: 2}, {IMR: 1, Type: 4, Digest: sha384("x"), Version: 1}}
	want := fmt.Sprintf(`[{"imr":3,"event_type":134217729,"digest":"","event":"a","event_payload":"ab","version":2},{"imr":1,"event_type":4,"digest":"%x","event":"","event_payload":""}]`, sha384("x"))
	got, err := log.Marshal()
	if err != nil || string(got) != want {
		t.Errorf("Marshal() = %s, %v, want %s", got, err, want)
	}
	if got, err := eventlog.Log(nil).Marshal(); err != nil || string(got) != "[]" {
		t.Errorf("Marshal(nil) = %s, %v, want []", got, err)
	}
}

func TestMarshalRefusesWhatParseWould(t *testing.T) {
	big := eventlog.Event{IMR: 1, Type: 4, Payload: make([]byte, 1<<20)}
	tests := []struct {
		name string
		log  eventlog.Log
		want string
	}{
		{"name not UTF-8", eventlog.Log{runtimeEvent("\xff")}, "event 0: event is not UTF-8"},
		{"too many events", make(eventlog.Log, 4097), "event log has more than 4096 events"},
		{"text too long", eventlog.Log{big, big}, "event log of 4194439 bytes, want at most 4194304"},
		{"version 3", eventlog.Log{{Version: 3}}, "event 0: version is 3, want 1 or 2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.log.Marshal()
			if err == nil || err.Error() != tt.want {
				t.Errorf("Marshal() = %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`[]`))
	f.Add([]byte(`[{"imr":0,"event_type":1,"digest":"","event":"","event_payload":""}]`))
	f.Add([]byte(`[{"imr":3,"event_type":134217729,"event":"app-id","event_payload":"00ff","version":2,"preimage":"7b7d"}]`))
	f.Add([]byte(`[{"imr":3,"event_type":134217729,"event":"\u00e9\ud800","event_payload":"","x":[{"y":null}]}]`))
	f.Add(fmt.Appendf(nil, `[{"imr":3,"event_type":134217729,"event":"a","event_payload":"","digest":"%x"}]`, sha384("\x01\x00\x00\x08:a:")))
	f.Fuzz(func(t *testing.T, text []byte) {
		log, err := eventlog.Parse(text)
		if err != nil {
			return
		}
		// Replaying may refuse, but must not panic.
		before, errBefore := log.Replay()
		_, _ = log.Identity()
		again, err := log.Marshal()
		if err != nil {
			if len(text) > eventlog.MaxTextSize/2 {
				return // escapes may make a long text longer than the bound
			}
			t.Fatalf("Marshal(Parse(%q)) = %v", text, err)
		}
		second, err := eventlog.Parse(again)
		if diff := cmp.Diff(log, second); err != nil || diff != "" {
			t.Fatalf("Parse(Marshal(Parse(%q))) = %v, (-first +second)\n%s", text, err, diff)
		}
		if after, errAfter := second.Replay(); after != before || (errAfter == nil) != (errBefore == nil) {
			t.Fatalf("Replay() of the second = %x, %v, want %x, %v", after, errAfter, before, errBefore)
		}
	})
}
