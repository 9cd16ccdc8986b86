package msgpack_test

import (
	"bytes"
	"encoding/hex"
	"math"
	"strings"
	"testing"

	"teekms/internal/attest/versioned/msgpack"
)

// The forms are those of the specification's tables, shortest first.
func TestNumbersAndLengthsTakeTheirShortestForm(t *testing.T) {
	tests := []struct {
		name  string
		write func(*msgpack.Encoder)
		want  string // how it begins
		size  int
	}{
		{"0", func(e *msgpack.Encoder) { e.Uint(0) }, "00", 1},
		{"127", func(e *msgpack.Encoder) { e.Uint(127) }, "7f", 1},
		{"128", func(e *msgpack.Encoder) { e.Uint(128) }, "cc80", 2},
		{"256", func(e *msgpack.Encoder) { e.Uint(256) }, "cd0100", 3},
		{"65536", func(e *msgpack.Encoder) { e.Uint(65536) }, "ce00010000", 5},
		{"2^32", func(e *msgpack.Encoder) { e.Uint(1 << 32) }, "cf0000000100000000", 9},
		{"nil", (*msgpack.Encoder).Nil, "c0", 1},
		{"map of 15", func(e *msgpack.Encoder) { e.Map(15) }, "8f", 1},
		{"map of 16", func(e *msgpack.Encoder) { e.Map(16) }, "de0010", 3},
		{"array of 65535", func(e *msgpack.Encoder) { e.Array(65535) }, "dcffff", 3},
		{"array of 65536", func(e *msgpack.Encoder) { e.Array(65536) }, "dd00010000", 5},
		{"text of 31", func(e *msgpack.Encoder) { e.Text(strings.Repeat("a", 31)) }, "bf61", 32},
		{"text of 32", func(e *msgpack.Encoder) { e.Text(strings.Repeat("a", 32)) }, "d92061", 34},
		{"text of 256", func(e *msgpack.Encoder) { e.Text(strings.Repeat("a", 256)) }, "da010061", 259},
		{"text of 65536", func(e *msgpack.Encoder) { e.Text(strings.Repeat("a", 65536)) }, "db0001000061", 65541},
		{"no bytes", func(e *msgpack.Encoder) { e.Bytes(nil) }, "c400", 2},
		{"256 bytes", func(e *msgpack.Encoder) { e.Bytes(make([]byte, 256)) }, "c5010000", 259},
		{"65536 bytes", func(e *msgpack.Encoder) { e.Bytes(make([]byte, 65536)) }, "c60001000000", 65541},
		{"integers", func(e *msgpack.Encoder) { e.Integers([]byte{1, 255}) }, "9201ccff", 4},
		{"what is encoded already", func(e *msgpack.Encoder) { e.Raw([]byte{1}) }, "01", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var e msgpack.Encoder
			tt.write(&e)
			if got := hex.EncodeToString(e); !strings.HasPrefix(got, tt.want) || len(e) != tt.size {
				t.Errorf("wrote %d bytes %.20s, want %d bytes %s", len(e), got, tt.size, tt.want)
			}
		})
	}
}

func TestReadBack(t *testing.T) {
	var e msgpack.Encoder
	long := strings.Repeat("long", 20_000)
	for _, v := range []uint64{0, 127, 128, 65535, math.MaxUint64} {
		e.Uint(v)
	}
	for _, s := range []string{"", "short", long[:40], long[:300], long} {
		e.Text(s)
		e.Bytes([]byte(s))
		e.Integers([]byte(s))
	}
	d := msgpack.NewDecoder(e)
	for _, want := range []uint64{0, 127, 128, 65535, math.MaxUint64} {
		if got, err := d.Uint(math.MaxUint64); err != nil || got != want {
			t.Errorf("Uint() = %d, %v, want %d", got, err, want)
		}
	}
	for _, want := range []string{"", "short", long[:40], long[:300], long} {
		if got, err := d.Text(); err != nil || got != want {
			t.Errorf("Text() = %.10q, %v, want %.10q", got, err, want)
		}
		for range 2 {
			if got, err := d.Bytes(); err != nil || string(got) != want {
				t.Errorf("Bytes() = %.10q, %v, want %.10q", got, err, want)
			}
		}
	}
	if len(d.Rest()) != 0 {
		t.Errorf("%d bytes are left", len(d.Rest()))
	}
}

func TestValuePassesOverEveryForm(t *testing.T) {
	for _, s := range []string{
		"00", "e0", "c0", "c2", "c3", "ca00000000", "cb0000000000000000",
		"cc00", "cd0000", "ce00000000", "cf0000000000000000", "d000", "d10000", "d200000000", "d30000000000000000",
		"d40000", "d5000000", "d60000000000", "d7000000000000000000", "d80000000000000000000000000000000000",
		"c7010000", "c800010000", "c9000000010000", "a161", "d90161", "da000161", "db0000000161",
		"c40100", "c5000100", "c60000000100", "91c0", "dc0001c0", "dd00000001c0", "81c0c0", "de0001c0c0", "df00000001c0c0",
	} {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		d := msgpack.NewDecoder(append(bytes.Clone(b), 7))
		if got, err := d.Value(); err != nil || !bytes.Equal(got, b) || len(d.Rest()) != 1 {
			t.Errorf("Value(%s) = %x, %v, want all of it", s, got, err)
		}
		for n := range b {
			if got, err := msgpack.NewDecoder(b[:n]).Value(); err == nil || err.Error() != "ends too early" {
				t.Errorf("Value(%x of %s) = %x, %v, want it to end too early", b[:n], s, got, err)
			}
		}
	}
	if _, err := msgpack.NewDecoder([]byte{0xc1}).Value(); err == nil || err.Error() != "0xc1 begins no value" {
		t.Errorf("Value(c1) = %v, want its refusal", err)
	}
}

func FuzzValue(f *testing.F) {
	f.Add([]byte{0x82, 0xa1, 'a', 0x91, 0xc0, 0xa1, 'b', 0xc4, 1, 0})
	f.Add(bytes.Repeat([]byte{0x91}, 100))
	f.Add([]byte{0xdf, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := msgpack.NewDecoder(b)
		got, err := d.Value()
		if err == nil && !bytes.Equal(append(bytes.Clone(got), d.Rest()...), b) {
			t.Fatalf("Value(%x) = %x and leaves %x", b, got, d.Rest())
		}
	})
}
