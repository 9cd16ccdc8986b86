package redisdb_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/redisdb"
)

// fuzzRecord checks that what parses is written again as it was, and that what
// does not is the database's fault.
func fuzzRecord(f *testing.F, reparse func([]byte) ([]byte, error)) {
	f.Helper()
	f.Fuzz(func(t *testing.T, b []byte) {
		again, err := reparse(b)
		if err != nil {
			if !errors.Is(err, storage.ErrIntegrity) && !errors.Is(err, storage.ErrWrongKey) {
				t.Errorf("parse(%x) = %v, want %v", b, err, storage.ErrIntegrity)
			}
			return
		}
		if !bytes.Equal(again, b) {
			t.Errorf("parse(%x) is written %x", b, again)
		}
	})
}

func FuzzHeader(f *testing.F) {
	sample := redisdb.SampleHeader()
	f.Add(sample)
	f.Add(sample[:len(sample)-1])
	f.Add([]byte("teekms redis v1\n"))
	fuzzRecord(f, redisdb.ReparseHeader)
}

func FuzzHead(f *testing.F) {
	f.Add(redisdb.SampleHead(nil))
	f.Add(redisdb.SampleHead([]byte{}))
	f.Add(redisdb.SampleHead([]byte("the head of the log")))
	fuzzRecord(f, redisdb.ReparseHead)
}

func sampleEntries() []registry.Entry {
	return []registry.Entry{
		{Rule: registry.Rule{Kind: registry.App, Value: "a"}, Revision: 1},
		{Rule: registry.Rule{Kind: registry.Compose, Subject: "a", Value: "b"}, Revision: 2},
		{Rule: registry.Rule{Kind: registry.Compose, Subject: "a", Value: "c"}, Revision: 1 << 60},
	}
}

func FuzzNode(f *testing.F) {
	for _, b := range redisdb.SampleNodes(sampleEntries()) {
		f.Add(b)
	}
	f.Add([]byte{0, 0, 0})
	fuzzRecord(f, redisdb.ReparseNode)
}

func FuzzRow(f *testing.F) {
	f.Add(redisdb.MarshalRow(audit.Row{Seq: 7, EventID: eventID(7), Nodes: make([]byte, 64), Body: []byte("body")}))
	f.Add(redisdb.MarshalRow(audit.Row{}))
	fuzzRecord(f, func(b []byte) ([]byte, error) {
		r, err := redisdb.ParseRow(b)
		return redisdb.MarshalRow(r), err
	})
}

func FuzzUnpad(f *testing.F) {
	f.Add(make([]byte, 256))
	f.Add(append([]byte{0, 0, 0, 1, 'x'}, make([]byte, 251)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		data, err := redisdb.Unpad(b)
		if err == nil && (len(b)%256 != 0 || len(data) > len(b)-4 || len(b)-4-len(data) >= 256) {
			t.Errorf("Unpad(%x) = %x", b, data)
		}
	})
}

func FuzzOpenValue(f *testing.F) {
	seal, open := redisdb.Box("label")
	f.Add([]byte(seal([]byte("data"), "field")))
	f.Add([]byte{1})
	valid := seal(nil, "another field")
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := open(string(b), "another field"); err == nil && string(b) != valid {
			t.Errorf("open(%x) of a field that this was not sealed for succeeded", b)
		}
	})
}

func TestNodesOutOfOrderAreRefused(t *testing.T) {
	entries := sampleEntries()
	entries[0], entries[1] = entries[1], entries[0]
	for _, b := range append(redisdb.SampleNodes(entries), redisdb.SampleNodes(nil)...) {
		if _, err := redisdb.ReparseNode(b); !errors.Is(err, storage.ErrIntegrity) {
			t.Errorf("parse of the node %x = %v, want %v", b, err, storage.ErrIntegrity)
		}
	}
}

func TestValuesOpenOnlyInTheirPlace(t *testing.T) {
	seal, open := redisdb.Box("label")
	for _, n := range []int{0, 1, 251, 252, 253, 508, 1 << 20} {
		data := bytes.Repeat([]byte{0xab}, n)
		value := seal(data, "field")
		if got, err := open(value, "field"); err != nil || !bytes.Equal(got, data) {
			t.Errorf("open of %d bytes = %d bytes, %v", n, len(got), err)
		}
		if (len(value)-1-24-16)%256 != 0 {
			t.Errorf("%d bytes are sealed in %d", n, len(value))
		}
		for name, changed := range map[string]string{
			"first byte": "\x02" + value[1:], "nonce": value[:5] + string(value[5]^1) + value[6:],
			"end": value[:len(value)-1] + string(value[len(value)-1]^1), "short": value[:len(value)-1], "empty": "",
			"long": value + strings.Repeat("x", 2<<20),
		} {
			if _, err := open(changed, "field"); !errors.Is(err, storage.ErrIntegrity) {
				t.Errorf("open with another %s = %v, want %v", name, err, storage.ErrIntegrity)
			}
		}
		if _, err := open(value, "other"); !errors.Is(err, storage.ErrIntegrity) {
			t.Errorf("open in another field = %v, want %v", err, storage.ErrIntegrity)
		}
		_, openOther := redisdb.Box("other label")
		if _, err := openOther(value, "field"); !errors.Is(err, storage.ErrIntegrity) {
			t.Errorf("open under another label = %v, want %v", err, storage.ErrIntegrity)
		}
	}
}

func TestSettings(t *testing.T) {
	tests := []struct {
		name                    string
		appendOnly, fsync, evic string
		warnings                int
		refused                 bool
	}{
		{"all well", "yes", "always", "noeviction", 0, false},
		{"fsync every second", "yes", "everysec", "noeviction", 1, false},
		{"fsync never", "yes", "no", "noeviction", 1, false},
		{"no append-only file", "no", "always", "noeviction", 1, false},
		{"nothing is told", "", "", "", 2, false},
		{"fsync is not told", "yes", "", "noeviction", 1, false},
		{"keys with a time to live are evicted", "yes", "always", "volatile-lru", 1, false},
		{"any key is evicted", "yes", "always", "allkeys-lru", 0, true},
		{"a policy of the future", "yes", "always", "surprise", 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			warnings, err := redisdb.Judge(tt.appendOnly, tt.fsync, tt.evic)
			if len(warnings) != tt.warnings || (err != nil) != tt.refused {
				t.Errorf("judge = %q, %v, want %d warnings, refused %v", warnings, err, tt.warnings, tt.refused)
			}
			if err != nil && !strings.Contains(err.Error(), "maxmemory-policy") {
				t.Errorf("judge = %v, want what to set", err)
			}
		})
	}
	on, policy := redisdb.FromInfo("# Persistence\r\naof_enabled:1\r\n# Memory\r\nmaxmemory_policy:noeviction\r\n")
	if diff := cmp.Diff([]string{"yes", "noeviction"}, []string{on, policy}); diff != "" {
		t.Errorf("settings from INFO (-want +got):\n%s", diff)
	}
}
