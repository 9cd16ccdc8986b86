package scale_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"teekms/internal/attest/versioned/scale"
)

func TestKnownLengths(t *testing.T) {
	for n, want := range map[int]string{0: "00", 1: "04", 63: "fc", 64: "0101", 16383: "fdff", 16384: "02000100", 1<<30 - 1: "feffffff"} {
		var e scale.Encoder
		e.Compact(n)
		if got := hex.EncodeToString(e); got != want {
			t.Errorf("Compact(%d) = %s, want %s", n, got, want)
		}
		if got, err := scale.NewDecoder(e).Compact(); err != nil || got != n {
			t.Errorf("Compact(%s) = %d, %v, want %d", want, got, err, n)
		}
	}
}

func FuzzDecoder(f *testing.F) {
	var e scale.Encoder
	e.Bool(true)
	e.Uint32(7)
	e.Uint64(9)
	e.Text("text")
	e.Bytes([]byte{1, 2})
	e.Raw([]byte{3})
	f.Add([]byte(e))
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, in []byte) {
		d := scale.NewDecoder(in)
		flag, err1 := d.Bool()
		small, err2 := d.Uint32()
		large, err3 := d.Uint64()
		text, err4 := d.Text()
		data, err5 := d.Bytes()
		for _, err := range []error{err1, err2, err3, err4, err5} {
			if err != nil {
				return
			}
		}
		var out scale.Encoder
		out.Bool(flag)
		out.Uint32(small)
		out.Uint64(large)
		out.Text(text)
		out.Bytes(data)
		out.Raw(d.Rest())
		if !bytes.Equal(out, in) {
			t.Fatalf("%x is written as %x", in, []byte(out))
		}
	})
}
