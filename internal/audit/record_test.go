package audit_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"

	"teekms/internal/audit"
	"teekms/internal/registry"
)

// sample is a record with everything in it.
func sample() audit.Record {
	return audit.Record{
		Seq: 7, Prev: tlog.Hash{1, 2, 3}, Revision: 9, ID: [16]byte{15: 1}, Kind: audit.RegistryChange,
		Time:   time.Date(2026, 1, 31, 12, 0, 0, 123456000, time.UTC),
		Fields: map[string]string{"by": "admin", "comment": "a new image — ü", "a": "1"},
		Edits: []registry.Edit{
			{Op: registry.Add, Rule: registry.Rule{Kind: registry.Compose, Subject: strings.Repeat("0a", 20), Value: strings.Repeat("b0", 32)}},
			{Op: registry.RemoveAll, Rule: registry.Rule{Kind: registry.OSImage}},
		},
	}
}

// TestRecordsAreEncodedAsDocumented pins the bytes: records of today must be
// readable, and hash to the same, for ever.
func TestRecordsAreEncodedAsDocumented(t *testing.T) {
	r := sample()
	r.Edits = r.Edits[1:]
	body, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		hex.EncodeToString([]byte("teekms audit record v1\n")),
		"0000000000000007",
		"0102030000000000000000000000000000000000000000000000000000000000",
		"0000000000000009",
		"00000000000000000000000000000001",
		fmt.Sprintf("%016x", r.Time.UnixMicro()),
		"0f", hex.EncodeToString([]byte("registry_change")),
		"0003",
		"01", hex.EncodeToString([]byte("a")), "00000001", hex.EncodeToString([]byte("1")),
		"02", hex.EncodeToString([]byte("by")), "00000005", hex.EncodeToString([]byte("admin")),
		"07", hex.EncodeToString([]byte("comment")), "00000012", hex.EncodeToString([]byte("a new image — ü")),
		"0001",
		"0a", hex.EncodeToString([]byte("remove_all")), "08", hex.EncodeToString([]byte("os_image")), "0000", "0000",
	}, "")
	if diff := cmp.Diff(want, hex.EncodeToString(body)); diff != "" {
		t.Errorf("Marshal() (-want +got):\n%s", diff)
	}
}

func TestRecordsSurviveEncoding(t *testing.T) {
	tests := []struct {
		name   string
		change func(*audit.Record)
	}{
		{"everything", func(*audit.Record) {}},
		{"nothing but the kind", func(r *audit.Record) { *r = audit.Record{ID: r.ID, Time: r.Time, Kind: audit.Start} }},
		{"before 1970", func(r *audit.Record) { r.Time = time.Date(1812, 1, 2, 3, 4, 5, 6000, time.UTC) }},
		{"the longest value", func(r *audit.Record) { r.Fields["x"] = strings.Repeat("x", audit.MaxValue) }},
		{"the most edits", func(r *audit.Record) {
			r.Edits = nil
			for range audit.MaxEdits {
				r.Edits = append(r.Edits, sample().Edits[0])
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := sample()
			tt.change(&want)
			body, err := want.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			got, err := audit.Parse(body)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&want, got); diff != "" {
				t.Errorf("Parse(Marshal()) (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMarshalRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(*audit.Record)
		want   string
	}{
		{"no id", func(r *audit.Record) { r.ID = [16]byte{} }, "it has no id"},
		{"no kind", func(r *audit.Record) { r.Kind = "" }, "its kind is no word"},
		{"a kind that is no word", func(r *audit.Record) { r.Kind = "App Key" }, "its kind is no word"},
		{"a long kind", func(r *audit.Record) { r.Kind = audit.Kind(strings.Repeat("x", 33)) }, "its kind is no word"},
		{"a field without a name", func(r *audit.Record) { r.Fields[""] = "x" }, "has no name"},
		{"a name in capitals", func(r *audit.Record) { r.Fields["App"] = "x" }, "has no name"},
		{"a long name", func(r *audit.Record) { r.Fields[strings.Repeat("x", 65)] = "x" }, "has no name"},
		{"a value that is not UTF-8", func(r *audit.Record) { r.Fields["x"] = "\xff" }, "field x is not UTF-8"},
		{"a long value", func(r *audit.Record) { r.Fields["x"] = strings.Repeat("x", audit.MaxValue+1) }, "field x is not UTF-8 of at most 65536 bytes"},
		{"many fields", func(r *audit.Record) {
			for i := range audit.MaxFields {
				r.Fields[fmt.Sprintf("f%d", i)] = "x"
			}
		}, "67 fields, want at most 64"},
		{"many edits", func(r *audit.Record) { r.Edits = make([]registry.Edit, audit.MaxEdits+1) }, "4097 edits, want at most 4096"},
		{"an edit of nothing", func(r *audit.Record) { r.Edits[0].Op = "" }, "an edit without operation or kind"},
		{"a rule that is not UTF-8", func(r *audit.Record) { r.Edits[0].Rule.Value = "\xff" }, "a rule that is not UTF-8"},
		{"a long rule", func(r *audit.Record) { r.Edits[0].Rule.Subject = strings.Repeat("x", 257) }, "a rule that is not UTF-8 of at most 256"},
		{"more than a mebibyte", func(r *audit.Record) {
			for i := range 17 {
				r.Fields[fmt.Sprintf("f%d", i)] = strings.Repeat("x", audit.MaxValue)
			}
		}, "bytes, want at most 1048576"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := sample()
			tt.change(&r)
			_, err := r.Marshal()
			if !errors.Is(err, audit.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Marshal() = %v, want ErrInvalid: %s", err, tt.want)
			}
		})
	}
}

func TestParseTakesNoOtherEncoding(t *testing.T) {
	r := sample()
	good, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	swap := func(old, with string) []byte {
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("%q is not in the record", old)
		}
		return bytes.Replace(good, []byte(old), []byte(with), 1)
	}
	tests := []struct {
		name string
		body []byte
		want string
	}{
		{"nothing", nil, "it begins otherwise"},
		{"another version", swap("record v1", "record v2"), "it begins otherwise"},
		{"a byte too many", append(bytes.Clone(good), 0), "1 bytes too many"},
		{"fields in another order", swap("\x01a\x00\x00\x00\x011\x02by\x00\x00\x00\x05admin", "\x02by\x00\x00\x00\x05admin\x01a\x00\x00\x00\x011"), "cut short, or out of bounds"},
		{"a field twice", swap("\x02by\x00\x00\x00\x05admin", "\x01a\x00\x00\x00\x06admins"), "cut short, or out of bounds"},
		{"an empty value", swap("\x02by\x00\x00\x00\x05admin", "\x07byadmin\x00\x00\x00\x00"), "cut short, or out of bounds"},
		{"a value that is not UTF-8", swap("admin", "adm\xffn"), "cut short, or out of bounds"},
		{"no id", swap("\x00\x01\x00", "\x00\x00\x00"), "it has no id"},
		{"more than a mebibyte", make([]byte, audit.MaxBody+1), "more than 1048576 bytes"},
	}
	for n := range len(good) - 1 {
		if _, err := audit.Parse(good[:n]); err == nil {
			t.Errorf("Parse of the first %d bytes = nil error, want a refusal", n)
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "no id" {
				tt.body = bytes.Clone(good)
				copy(tt.body[len("teekms audit record v1\n")+48:], make([]byte, 16))
			}
			if _, err := audit.Parse(tt.body); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Parse() = %v, want %s", err, tt.want)
			}
		})
	}
}

// FuzzParse holds that what is taken is written in the one way there is, and
// that nothing makes Parse panic or read far more than it was given.
func FuzzParse(f *testing.F) {
	r := sample()
	for range 2 {
		body, err := r.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
		f.Add(body[:len(body)/2])
		r.Fields, r.Edits = nil, nil
	}
	f.Add([]byte("teekms audit record v1\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := audit.Parse(body)
		if err != nil {
			return
		}
		again, err := r.Marshal()
		if err != nil || !bytes.Equal(body, again) {
			t.Errorf("Marshal(Parse(%x)) = %x, %v", body, again, err)
		}
	})
}
